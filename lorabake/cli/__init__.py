"""The command line: parse, call, print. The only place that prints."""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import os
import pkgutil
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from importlib.abc import InspectLoader
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from lorabake import __version__
from lorabake.cli.messages import FORMATS, OPTION, VARIABLE, messages
from lorabake.cli.streams import UnreadError, open_streams
from lorabake.cli.terminal import echo, echo_lines, tame_libraries
from lorabake.errors import INTERNAL, LorabakeError, SurroundingsError, first_line, where
from lorabake.interrupts import STOPPING
from lorabake.machine import GARBAGE, worded
from lorabake.settings import as_options

FIRST = (
    *(
        "init",
        "check",
        "bake",
        "batch",
        "plan",
        "verify",
        "fetch",
        "inspect",
        "metadata",
        "hash",
        "lock",
        "cache-key",
        "card",
        "publish",
    ),
    "recipe",
    *("schema", "completion"),
)
"""Commands in the order of a user's work, which `--help` keeps; others follow by name."""

CONTEXT = {"help_option_names": ["-h", "--help"]}
"""Settings that every command needs for itself: click creates a command's help option from the first context in which
it is used, and that context may have no parent."""

ARGUMENTS = "lorabake.arguments"
"""Where a context keeps the words behind the command's name."""

DEBUG = "LORABAKE_DEBUG"
"""The environment variable that asks for the traceback of an internal error."""

WSL = "In a WSL terminal it works as on Linux: wsl --install, then install lorabake there."
"""What a user of Windows can do."""


def example(*calls: str) -> str:
    """Write the end of a command's help: how it is called."""
    lines = "".join(f"\n  lorabake {call}" for call in calls)
    return f"\b\n{'Examples' if len(calls) > 1 else 'Example'}:{lines}"


class Interruption:
    """Let the first signal interrupt the work. Later signals, and those after the work, do nothing."""

    def __init__(self) -> None:
        self._is_heard = True

    def listen(self) -> None:
        """Begin to listen. Signals that the parent process had ignored (as nohup does) stay ignored."""
        self._is_heard = True
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)

    def ignore(self) -> None:
        """Let no signal interrupt from now on."""
        self._is_heard = False

    def _hear(self, *_: object) -> None:
        if self._is_heard:
            self._is_heard = False
            raise KeyboardInterrupt


interruption = Interruption()


@cache
def commands() -> dict[str, str]:
    """Map commands to their help without any import: files here that begin with `lorabake NAME`: and a sentence."""
    help_texts: dict[str, str] = {}
    for info in pkgutil.iter_modules(__path__):
        spec = importlib.util.find_spec(f"{__name__}.{info.name}")
        source = spec.loader.get_source(spec.name) if spec and isinstance(spec.loader, InspectLoader) else None
        if match := re.match(rf'"""`lorabake {_command(info.name)}`: (.*?)(?:""")?$', source or "", re.MULTILINE):
            help_texts[_command(info.name)] = match[1]
    return dict(sorted(help_texts.items(), key=lambda item: FIRST.index(item[0]) if item[0] in FIRST else len(FIRST)))


def _command(module: str) -> str:
    """Return the name of the command in a module: cache-key in cache_key."""
    return module.replace("_", "-")


class LazyGroup(click.Group):
    """Import a command's module when it is called, so that `--help` stays fast."""

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run a command; the library's advice then speaks of options."""
        with as_options(), worded():
            return super().main(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that is called; click's complaint about an option without its value names no command."""
        try:
            return super().invoke(ctx)
        except click.BadOptionUsage as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            if error.ctx is None and command is not None:
                error.ctx = click.Context(command, parent=ctx, info_name=ctx.invoked_subcommand)
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order of a user's work."""
        return [*commands()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; raise SurroundingsError on Windows, before anything is imported that may fail there."""
        if sys.platform == "win32":
            raise SurroundingsError("lorabake does not work on Windows yet", WSL)
        if cmd_name not in commands():
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        return _with_format(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is called; raise UnknownCommandError for any other word."""
        if args[0] not in commands() and not args[0].startswith("-") and not ctx.resilient_parsing:
            from lorabake.cli.usage import UnknownCommandError

            raise UnknownCommandError(args[0], ctx)
        ctx.meta[ARGUMENTS] = tuple(args[1:])  # for the advice on a wrong one
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([*commands().items()])


def _with_format(command: click.Command) -> click.Command:
    """Give a command the option that all have; `messages.begin` reads it."""
    if not any(OPTION in parameter.opts for parameter in command.params):
        words = "How errors and warnings are printed: as text, or as annotations that GitHub shows beside the recipe."
        told = f"{words}  [default: ${VARIABLE}, else text]"
        command.params.append(click.Option([OPTION], type=click.Choice(FORMATS), expose_value=False, help=told))
    return command


@click.group(cls=LazyGroup, context_settings=CONTEXT, epilog=example("bake --base BASE --lora LORA=0.8 -o OUTPUT"))
@click.version_option(__version__, prog_name="lorabake")
def lorabake() -> None:
    """Bake weighted LoRAs into a SafeTensors checkpoint.

    \b
    Exit codes: 0 done, 1 verify found a difference, 2 an input is wrong,
    3 the machine has a problem (disk full, device missing, an extra not installed),
    4 lorabake itself failed.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; turn every expected failure into one message and its exit code.

    Without `arguments`, take the process's own.
    """
    interruption.listen()
    messages.begin(sys.argv[1:] if arguments is None else arguments)
    tame_libraries()
    try:
        try:
            code = lorabake.main(arguments, prog_name="lorabake", standalone_mode=False)
        finally:
            interruption.ignore()
        sys.stdout.flush()
    except UnreadError as error:
        sys.exit(error.exit_code)
    except LorabakeError as error:
        messages.failed(error.kind, error.exit_code, *error.lines)
        if error.exit_code == INTERNAL:
            show_trace(traceback.format_exc())
        sys.exit(error.exit_code)
    except NoArgsIsHelpError as error:
        echo_lines(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        from lorabake.cli.usage import usage_lines

        messages.failed("usage", error.exit_code, *usage_lines(error))
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        echo(_stopped(sys.argv[1:] if arguments is None else arguments), err=True)
        messages.document("interrupted", 130, "stopped")
        sys.exit(130)
    except Exception as error:
        messages.failed("internal", INTERNAL, _internal(error))
        internal_error(traceback.format_exc())
        sys.exit(INTERNAL)
    sys.exit(code if isinstance(code, int) else 0)


def internal_error(trace: str) -> None:
    """Ask for a report of a failure of lorabake's own; show where it happened if LORABAKE_DEBUG is set."""
    if os.environ.get(DEBUG):
        show_trace(trace)
    else:
        echo(f"  Please report it, with what {DEBUG}=1 shows.", err=True)


def show_trace(trace: str) -> None:
    """Show where a failure of lorabake's own happened, if LORABAKE_DEBUG is set."""
    for line in trace.rstrip().split("\n") if os.environ.get(DEBUG) else ():
        echo(f"  {line}", err=True)


def _stopped(words: Sequence[str]) -> str:
    """Say what a command that was stopped has left."""
    match words:
        case ["bake", *_]:
            return "stopped; the target is what it was before"
        case ["batch", *options] if "--force" not in options:
            return "stopped; what is finished is kept, and the same command goes on from there"
    return "stopped"


def _internal(error: Exception) -> str:
    return f"lorabake failed: {type(error).__name__}: {first_line(error)} ({where(error)})"


def entry() -> None:
    """Run the command line as a process, and exit without Python's cleanup of torch, which takes 0.3 s.

    Headers, plans and torch's modules are many long-lived objects, so garbage collection is rarely worth its time.
    Threads of OpenMP sleep while they wait for each other: where a core is shared, spinning takes ten times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    gc.set_threshold(GARBAGE)
    open_streams()
    try:
        main()
    except SystemExit as end:
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
