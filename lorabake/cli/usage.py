"""Word what is wrong with a command line: the error itself, then what to do. Exit code 2, as for every faulty input.

People type the options and commands of other programs, too; the tables here say what lorabake calls them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import click

from lorabake.cli import ARGUMENTS
from lorabake.likeness import nearest

RECIPES = (".yaml", ".yml")
MODELS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".npz")


def _table(rows: dict[str, str]) -> dict[str, str]:
    """Turn what to write -> words into word -> what to write."""
    return {word: advice for advice, words in rows.items() for word in words.split()}


COMMANDS = _table(
    {
        "bake": "merge fuse apply run make build create combine start go generate",
        "plan": "dry-run dryrun preview simulate estimate try",
        "verify": "test prove compare diff audit",
        "check": "validate lint",
        "metadata": "header fields modelspec tags",
        "hash": "sha256 sha256sum checksum digest fingerprint autov2 autov3",
        "inspect": "info show ls list describe identify what keys",
        "fetch": "download pull get",
        "publish": "upload push share release",
        "bake, with output.dtype in the recipe": "cast prune",
        "bake, with output.layout or output.dtype in the recipe": "convert",
    }
)
"""Command of other programs -> lorabake's."""

STRENGTHS = "strength weight weights multiplier scale alpha ratio ratios"
"""Options of other programs for the strength of a LoRA."""

OPTIONS = _table(
    {
        "--overwrite": "f yes y replace clobber",
        "--output FILE": (
            "output-path output-file out out-path outfile dest destination to save-to save-path save model-out"
        ),
        "--output FILE, as in --output out/baked.safetensors": "output-dir out-dir output-folder",
        "--device cpu": "cpu cpu-only no-cuda no-gpu use-cpu lowvram",
        "--device cuda": "gpu cuda use-gpu nvidia gpus",
        "--device mps": "mps metal",
        "--workers": "threads j jobs num-workers n-jobs parallel processes num-threads",
        "--base FILE": "model sd-model base-model checkpoint ckpt base-model-name-or-path base-path",
        "--base FILE --lora FILE=0.8": "models loras lora-model lora-path adapter adapters network-weights",
        "--lora FILE=0.8": STRENGTHS,
        "--set output.dtype=float16": "dtype precision save-precision out-dtype fp16 bf16 half float",
        "--set output.layout=diffusers": "layout to-diffusers diffusers single-file",
        "--set output.shard_size=5GB": "shard-size max-shard-size",
        "--set method=ties, or another method": "method merge-method",
        "--set vae=FILE": "vae vae-path",
        "--quiet": "silent s no-progress",
        "--json": "output-format print-json",
        "--stage": "stages skip",
        "--prompt": "prompts p",
    }
)
"""Option of other programs -> what to write, where the command has the first of its options."""

OF_RECIPES = ("--base", "--lora", "--set")
"""Options that stand for a recipe, or change one, where a command takes them."""

NO_OPTION = "write the recipe without an option"

ELSEWHERE = _table(
    {
        "use `lorabake plan`, which writes nothing": "dry-run dryrun n simulate",
        "remove it: lorabake tells all unless --quiet; LORABAKE_DEBUG=1 shows the trace of a failure": (
            "verbose v debug trace log-level"
        ),
        "set NO_COLOR=1 in the environment": "no-color no-colour nocolor color",
        NO_OPTION: "config recipe c file yaml input i",
        "write `lorabake --version`": "version V",
    }
)
"""Option of other programs -> where lorabake has what it does."""


def usage_lines(error: click.ClickException) -> list[str]:
    """Put an error of the command line into lorabake's words, line by line."""
    context = getattr(error, "ctx", None)
    name = context.command_path if context is not None else "lorabake"
    help_line = f"`{name} --help` lists what there is."
    match error:
        case UnknownCommandError():
            return [f"lorabake has no command {error.name}{_hint_on_command(error.name)}", help_line]
        case click.NoSuchOption() if context is not None:
            return [
                f"{name} has no option {error.option_name}{_hint_on_option(error.option_name, context)}",
                help_line,
            ]
        case click.BadOptionUsage():
            return _bad_use(error)
        case click.MissingParameter():
            hint = error.param_hint or (error.param.make_metavar(context) if error.param and context else "a value")
            return [f"{name}: {hint if isinstance(hint, str) else ' '.join(hint)} is missing", *_example(context)]
        case click.BadParameter():
            return [_bad_value(error), f"`{name} --help` says what each option takes."]
    message = error.format_message()
    if extra := re.fullmatch(r"Got unexpected extra arguments? \((.*)\)", message):
        return _too_much(name, extra[1], context)
    return [message, help_line]


def _too_much(name: str, extra: str, context: click.Context | None) -> list[str]:
    """Say what is wrong with words that nothing takes: a second recipe, or the second half of a name."""
    is_recipe = extra.endswith(RECIPES) and " " not in extra
    if is_recipe and _has_recipe(tuple(word for word in _arguments(context) if word != extra)):
        return [
            f"{name} takes one recipe, and {extra} is a second one",
            f"{name.rpartition(' ')[2].capitalize()} each by a command of its own. "
            "If this is one name with a space in it, put it in quotes.",
        ]
    words = _arguments(context)
    if (files := _files_without_options(words)) and context is not None and "--base" in _options(context.command):
        base, *loras = files
        rest = [word for word in words if word not in files]
        named = " ".join(["--base", base, *(f"--lora {lora}=1" for lora in loras), *rest])
        return [f"{name}: {extra} stands without an option", f"Write {name} {named}"]
    advice = f"Put quotes around a name that has spaces. Call {name} once for each recipe or file."
    return [f"{name}: {extra} is too much", advice, *_example(context)]


def _files_without_options(words: tuple[str, ...]) -> list[str]:
    """Return files of weights that stand where a recipe would, if there are several: a base and LoRAs."""
    pairs = zip(("", *words), words, strict=False)
    files = [word for before, word in pairs if word.endswith(MODELS) and not before.startswith("-")]
    return files if len(files) > 1 else []


def _arguments(context: click.Context | None) -> tuple[str, ...]:
    """Return the words behind the command's name."""
    words: tuple[str, ...] = context.meta.get(ARGUMENTS, ()) if context is not None else ()
    return words


def _has_recipe(words: tuple[str, ...]) -> bool:
    """Tell whether a recipe's file is among the words; the one behind --save-recipe is none yet."""
    pairs = zip(("", *words), words, strict=False)
    return any(word.endswith(RECIPES) and before != "--save-recipe" for before, word in pairs)


def _value_of(option: str, words: tuple[str, ...]) -> str:
    """Return the word behind an option, or behind its '='; empty if there is none."""
    for word, after in zip(words, (*words[1:], ""), strict=True):
        if word == option:
            return after
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return ""


class UnknownCommandError(click.UsageError):
    """Report a command that lorabake does not have."""

    def __init__(self, name: str, context: click.Context) -> None:
        super().__init__(f"no command {name}", context)
        self.name = name


def _hint_on_command(name: str) -> str:
    commands = _commands()
    if name.endswith(RECIPES):
        return f"; write lorabake bake {name}"
    if name.endswith(MODELS):
        return f"; write lorabake inspect {name}"
    if name == "help":
        return "; write lorabake --help, or lorabake bake --help"
    if name.casefold() in COMMANDS:
        return f"; write lorabake {COMMANDS[name.casefold()]}"
    near = nearest(name, commands, cutoff=0.5)
    return f"; did you mean {near}?" if near else f"; its commands are {', '.join(commands)}"


def _hint_on_option(option: str, context: click.Context) -> str:
    own = _options(context.command)
    word = option.lstrip("-").replace("_", "-")
    word = word if len(word) == 1 else word.casefold()
    if isinstance(context.command, click.Group):
        holder = next((command for command in _commands() if option in _options(_command(command))), None)
        return f"; write it behind the command: lorabake {holder} … {option}" if holder else ""
    words, advice = _arguments(context), OPTIONS.get(word, "")
    value = _value_of(option, words)
    if word in STRENGTHS.split() and "--set" in own and _has_recipe(words):
        number = value if re.fullmatch(r"-?\d*\.?\d+", value) else "0.8"
        if "--strengths" in own:
            return (
                f"; --strengths 0,0.5,1 draws a sweep, and --set loras.0.strength={number} changes the recipe's value"
            )
        return f"; with a recipe, write --set loras.0.strength={number} (loras.0 is the first LoRA)"
    if advice.split(" ")[0] in own:
        return f"; write {advice}"
    if word in ELSEWHERE and ELSEWHERE[word] == NO_OPTION and value.endswith(RECIPES):
        return f"; write {context.command_path} {value}"
    if word in ELSEWHERE:
        return f"; {ELSEWHERE[word]}"
    if near := nearest(option, own, cutoff=0.7):
        return f"; did you mean {near}?"
    holders = [command for command in _commands() if option in _options(_command(command))]
    if option in OF_RECIPES and holders:
        return "; it takes a recipe's file, which `lorabake init` writes of --base and --lora"
    if holders:
        return f"; remove it here; lorabake {holders[0]} has it"
    words_of = {name.lstrip("-"): name for name in own}  # the dashes, which all have, make nothing alike
    near = nearest(option.lstrip("-"), words_of, cutoff=0.6)
    return f"; did you mean {words_of[near]}?" if near else ""


def _bad_use(error: click.BadOptionUsage) -> list[str]:
    option, message = error.option_name, error.format_message()
    if "requires an argument" in message:
        name = f"{error.ctx.command_path}: " if error.ctx is not None else ""
        return [f"{name}{option} needs a value behind it", _help_on(option, error.ctx)]
    if "does not take a value" in message:
        return [f"{option} takes no value", f"Write {option} alone, or leave it out."]
    return [message]


def _help_on(option: str, context: click.Context | None) -> str:
    """Say what an option takes: its choices, or what its help says."""
    known = context.command.params if context is not None else []
    for parameter in known:
        if isinstance(parameter, click.Option) and option in parameter.opts:
            if isinstance(parameter.type, click.Choice):
                *first, last = map(str, parameter.type.choices)
                return f"It takes {', '.join(first)} or {last}."
            if parameter.help:
                return f"Write `{option} VALUE`. Its help says: {parameter.help}"
    return "Add --help to the command to see which values it takes."


def _bad_value(error: click.BadParameter) -> str:
    """Say what a value must be, what it is, and which one may have been meant."""
    parameter = error.param
    is_option = isinstance(parameter, click.Option)
    name = max(parameter.opts, key=len) if parameter is not None and is_option else "the argument"
    message = error.message.rstrip(".")
    given = re.match(r"(?:[A-Z]\w+ )?'?(.+?)'? is (?:not|a )", message)
    kind = parameter.type if parameter is not None else None
    if given is None:
        return f"{name}: {message}"
    match kind:
        case click.IntRange(min=low, max=high):
            limits = f"from {low} to {high}" if high is not None else f"of {low} or more"
            return f"{name} must be a whole number {limits}, not {given[1]}"
        case click.Choice(choices=choices):
            near = nearest(given[1], choices, cutoff=0.5)
            *first, last = map(str, choices)
            hint = f"; did you mean {near}?" if near else ""
            return f"{name} must be {', '.join(first)} or {last}, not {given[1]}{hint}"
        case click.Path(file_okay=False):
            return f"{name} {given[1]}: is a file; name a folder, which may be a new one"
    return f"{name}: {message}"


def _example(context: click.Context | None) -> list[str]:
    """Return the example of a command's help."""
    epilog = (context.command.epilog or "") if context is not None else ""
    return [f"Write it as in: {lines[0].strip()}"] if (lines := epilog.splitlines()[2:3]) else []


def _commands() -> list[str]:
    from lorabake.cli import commands

    return [*commands()]


@cache
def _command(name: str) -> click.Command:
    from lorabake.cli import lorabake

    command = lorabake.get_command(click.Context(lorabake), name)
    assert command is not None, name
    return command


def _options(command: click.Command) -> list[str]:
    return list(_names(command))


def _names(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from (*parameter.opts, *parameter.secondary_opts)
