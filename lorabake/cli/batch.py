"""`lorabake batch`: Bake many recipes, each base read once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lorabake.artifacts.watch import has_lock
from lorabake.batch import BatchOptions, Outcome, bake_all
from lorabake.batch.groups import memory_of
from lorabake.batch.shards import Shard
from lorabake.checking import recipes_in
from lorabake.cli import CONTEXT, example
from lorabake.cli.devices import complete_device
from lorabake.cli.messages import messages
from lorabake.cli.places import check_writable
from lorabake.cli.progress import Bar
from lorabake.cli.reading import read_all
from lorabake.cli.recipe_options import only_option, set_option
from lorabake.cli.show import shown
from lorabake.cli.terminal import echo, echo_json
from lorabake.errors import ArgumentError, SurroundingsError
from lorabake.machine import default_workers, in_ci
from lorabake.options import RunOptions
from lorabake.planning import Plan
from lorabake.planning.links import unlinked_of
from lorabake.recipe import Recipe
from lorabake.recipe.options import Options
from lorabake.tensors.once import shared
from lorabake.visible import counted_as, size_of
from lorabake.writing.room import rooms_for
from lorabake.writing.whole import write_whole

if TYPE_CHECKING:
    from lorabake.verification.many import VerifiedBatch

FAILED = 1
"""The exit code of a batch of which some recipes failed."""

ENGINES: tuple[Literal["local", "ray"], ...] = ("local", "ray")

WORDS = {"baked": "baked", "current": "current", "waiting": "waiting", "failed": "FAILED", "left": "left"}


class Bytes(click.ParamType[int]):
    """Read a size such as 2GiB."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        from pydantic import TypeAdapter, ValidationError

        from lorabake.recipe.types import ByteSize

        try:
            return TypeAdapter(ByteSize).validate_python(value)
        except ValidationError:
            self.fail("must be a size such as 800MB or 2GiB", param, ctx)


@click.command(
    context_settings=CONTEXT,
    epilog=example("batch sweep.yaml", "batch recipes --jobs 4", "batch sweep.yaml --only 'ink-*' --junit junit.xml"),
)
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@set_option
@only_option
@click.option("--device", shell_complete=complete_device, help="Compute on this device, as in bake.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="How many processes bake side by side.  [default: 1]")
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="local",
    help="Where the work is done: on this machine, or on the nodes of a Ray cluster.  [default: local]",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="The Ray cluster to join; 'auto' finds one.  [default: $RAY_ADDRESS, else a new one on this machine]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="How many threads compute in each job.  [default: the cores, up to 8, shared by the jobs; 1 with Ray]",
)
@click.option("--memory", type=Bytes(), metavar="SIZE", help="The most memory of a pass in each job, such as 2GiB.")
@click.option("--overwrite", is_flag=True, help="Replace targets even if they hold something else.")
@click.option("--force", is_flag=True, help="Bake even what is there already, of its recipe and inputs.")
@click.option(
    "--fsync/--no-fsync", default=True, help="Whether to wait until the disk has everything.  [default: yes]"
)
@click.option(
    "--locked/--no-locked",
    default=None,
    help="Whether each recipe's lock has to be there and to fit, as in bake.  [default: in CI, if all have one]",
)
@click.option("--link", is_flag=True, help="Hard-link files of folders that stay as they are, as in bake.")
@click.option("--recheck", is_flag=True, help="Read what a stopped batch left, and compare it with its receipts.")
@click.option("--fail-fast", is_flag=True, help="Begin nothing after a recipe has failed.")
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write what happened as JUnit XML.")
@click.option(
    "--shard",
    metavar="I/N",
    help="Do share I of N, such as 3/8; the others run elsewhere. `auto` asks the scheduler.",
)
@click.option(
    "--verify",
    "report",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Then verify the outputs, as `lorabake verify --report DIR` does.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print what happened as JSON.")
def batch(
    recipes: tuple[Path, ...],
    changes: tuple[str, ...],
    globs: tuple[str, ...],
    device: str | None,
    jobs: int | None,
    engine: Literal["local", "ray"],
    address: str | None,
    workers: int | None,
    memory: int | None,
    overwrite: bool,
    force: bool,
    fsync: bool,
    locked: bool | None,
    link: bool,
    recheck: bool,
    fail_fast: bool,
    junit: Path | None,
    shard: str | None,
    report: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Bake RECIPES: files, or folders of them. A recipe with a matrix stands for several outputs.

    Outputs on one base are baked together, and the base is read once for them. A recipe that fails stops none of the
    others. The bytes are those of single bakes. A batch that was stopped goes on where it was.

    \b
    Exit codes: 0 all are baked, 1 some failed or are not what their recipes say, 2 nothing was begun, because all
    recipes or an option are wrong. With --shard also 3: the machine failed, such as its disk; try that shard again.
    """
    began = time.perf_counter()
    if address is not None and engine != "ray":
        raise click.UsageError("--address is a Ray cluster's: add --engine ray")
    threads = workers or (1 if engine == "ray" else max(1, default_workers() // (jobs or 1)))
    share = None if shard is None else Shard.of(shard, os.environ)
    if share is not None and force:
        raise ArgumentError(
            "--force and --shard: a shard cannot tell what was there before from what the others have made",
            "Remove the outputs instead.",
        )
    if share is not None and (jobs is not None or engine != "local"):
        raise ArgumentError("--shard: a shard is done in one process; leave out --jobs and --engine, or --shard")
    if share is not None and report is not None:
        raise ArgumentError(
            "--verify and --shard: the outputs are complete when all shards are over",
            "Run lorabake verify --report DIR then.",
        )
    if junit is not None:
        check_writable(junit, "report")
    read = read_all(recipes, recipes_in(recipes), lambda path: Options(path, changes=changes).recipes(), globs)
    unread = [Outcome(str(each.path), "failed", error=each.error) for each in read.unread]
    is_locked = in_ci() and all(map(has_lock, read.given)) if locked is None else locked
    chosen = _frozen(read.given) if is_locked else read.given
    if is_locked and locked is None and not quiet:
        echo("note: CI=true, and the recipes have locks: baked --locked (--no-locked turns it off)", err=True)
    if report is not None:
        from lorabake.cli.proofs import check_report

        check_report(report, chosen)
    talks = not (quiet or as_json)
    bar = Bar(shown=talks)
    passes: list[tuple[Plan, ...]] = []
    ends: list[Outcome] = []

    def begun(planned: Sequence[tuple[Plan, ...]], size: int) -> None:
        passes.extend(planned)
        if talks and planned:
            bases = {plan.sources.recipe.base.path for together in planned for plan in together}
            outputs, ending = counted_as(sum(map(len, planned)), "output"), "" if len(planned) == 1 else "es"
            share_of = f"shard {share}: " if share is not None else ""
            line = f"{share_of}{outputs} on {counted_as(len(bases), 'base')}, in {len(planned)} pass{ending}"
            echo(line + _jobs_line(planned, engine, jobs, threads), err=True)
        elif talks and share is not None:
            why = "there is less work than there are shards" if len(ends) < len(read.given) else "every recipe failed"
            echo(f"shard {share}: nothing to do, because {why}", err=True)
        every = [plan for together in planned for plan in together]
        for note, count in unlinked_of(every).items() if link and not quiet else ():
            echo(f"note: {note} ({counted_as(count, 'output')})", err=True)
        for warning in _warnings_of(planned, memory, threads):
            messages.warning(warning)
        bar.begin("baking", size)

    def ended(outcome: Outcome) -> None:
        ends.append(outcome)
        messages.recipe = outcome.recipe.file if outcome.recipe else None
        if outcome.error is not None:
            bar.remove()
            messages.error(*_named(outcome))
        elif talks:
            bar.remove()
            echo(_line(outcome))

    def kept(path: Path, size: int) -> None:
        if talks:
            bar.remove()
            echo(f"{shown(path)}: {size_of(size)} were finished before", err=True)

    run = RunOptions(
        device=device,
        workers=threads,
        overwrite=overwrite,
        force=force,
        fsync=fsync,
        locked=is_locked,
        link=link,
        progress=bar.advance,
        warn=_once(messages.warning),
    )
    options = BatchOptions(
        run=run,
        memory=memory,
        fail_fast=fail_fast,
        begun=begun,
        ended=ended,
        recheck=recheck,
        engine=engine,
        jobs=jobs,
        address=address,
        kept=kept,
        shard=share,
    )
    try:
        outcomes = (*unread, *bake_all(chosen, options))
    finally:
        bar.close()
    seconds = time.perf_counter() - began
    if junit is not None:
        _write_junit(junit, outcomes)
    if talks:
        _tell(outcomes, seconds)
    verified = None if report is None else _verified(outcomes, report, is_quiet=quiet, is_silent=as_json)
    if as_json:
        _tell_json(outcomes, len(passes), seconds, verified)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if share is not None and any(isinstance(error, SurroundingsError) for error in errors):
        return SurroundingsError.exit_code  # what starts the shards may repeat this one
    if errors and not passes:
        return max(error.exit_code for error in errors)
    if errors:
        return FAILED
    return verified.exit_code if verified else 0


def _frozen(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """Return recipes with the commits of their locks; one without a lock fails when it is baked."""
    from lorabake.artifacts.locking import frozen  # most batches have no lock

    with shared():
        return tuple(frozen(recipe) if has_lock(recipe) else recipe for recipe in recipes)


def _jobs_line(passes: Sequence[tuple[Plan, ...]], engine: str, jobs: int | None, workers: int) -> str:
    """Say how many jobs there are, where more than one process works, and what each takes."""
    if engine == "local" and (jobs or 1) == 1:
        return ""
    memory = f"about {max(memory_of(plans, workers) for plans in passes) / 2**20:.0f} MiB of memory"
    each = f"{counted_as(workers, 'worker')} and {memory}"
    many = counted_as(jobs, "job") if jobs else "jobs"
    return f"; {many} with {each}{' each' if jobs != 1 else ''}{' on Ray' if engine == 'ray' else ''}"


def _warnings_of(passes: Sequence[tuple[Plan, ...]], memory: int | None, workers: int) -> Iterator[str]:
    """Yield what is known before the work to go wrong: too little memory is asked for, or a disk is too small."""
    alone = max((memory_of(plans, workers) for plans in passes if len(plans) == 1), default=0)
    if memory is not None and alone > memory:
        yield f"a pass of one output takes about {size_of(alone)} of memory, more than --memory {size_of(memory)}"
    new = [plan for plans in passes for plan in plans if not os.path.lexists(plan.path)]
    for room in rooms_for(new):
        if room.missing:
            missing = f"{size_of(room.needed)}, and {size_of(room.free)} are free: make room, or bake fewer (--only)"
            yield f"{shown(room.folder)}: the outputs that are not there yet need {missing}"


def _verified(outcomes: Sequence[Outcome], report: Path, *, is_quiet: bool, is_silent: bool) -> VerifiedBatch:
    from lorabake.cli.proofs import Shows, verify_baked

    return verify_baked(outcomes, Shows(report, is_quiet=is_quiet, is_silent=is_silent))


def _once(warn: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on each message once: what is said of a LoRA holds for every output with it."""
    told: set[str] = set()

    def warned(message: str) -> None:
        if message not in told:
            told.add(message)
            warn(message)

    return warned


def _named(outcome: Outcome) -> tuple[str, ...]:
    """Return the lines of an outcome's error, with the output's name in the first."""
    assert outcome.error is not None
    first, *rest = outcome.error.lines
    return f"{outcome.name}: {first}", *rest


def _line(outcome: Outcome) -> str:
    result, recipe = outcome.result, outcome.recipe
    path = result.path if result else recipe.locate(recipe.output.path) if recipe else Path(outcome.name)
    took = f": {size_of(result.size)}" if result and outcome.status == "baked" else ""
    why = ": not begun, because another one failed" if outcome.status == "left" else ""
    return f"{WORDS[outcome.status]:<8}  {shown(path)}{took}{why}"


def _tell(outcomes: Sequence[Outcome], seconds: float) -> None:
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in WORDS}
    told = [f"{count} {status}" for status, count in counts.items() if count] or ["nothing to do"]
    echo(f"{counted_as(len(outcomes), 'output')} in {seconds:.1f} s: {', '.join(told)}")
    if counts["waiting"]:
        echo("waiting: this share is done, and other shards do the rest; the last one completes these outputs")


def _write_junit(path: Path, outcomes: Sequence[Outcome]) -> None:
    from lorabake.report.junit import render_batch

    try:
        write_whole(path, render_batch(outcomes))
    except OSError as error:
        raise SurroundingsError(f"{path}: the report cannot be written: {error.strerror}") from None


def _tell_json(
    outcomes: Sequence[Outcome], passes: int, seconds: float, verified: VerifiedBatch | None = None
) -> None:
    from lorabake.documents import document
    from lorabake.documents.batch import BatchDocument, BatchOutput, Chosen

    verdicts = {id(output.recipe): output.name_of_verdict for output in verified.outputs} if verified else {}
    outputs = tuple(
        BatchOutput(
            name=outcome.name,
            recipe=shown(outcome.recipe.file) if outcome.recipe and outcome.recipe.file else None,
            path=outcome.recipe.output.path if outcome.recipe else None,
            choices=tuple(Chosen(*choice) for choice in outcome.recipe.choices.items()) if outcome.recipe else (),
            status=outcome.status,
            bytes=outcome.result.size if outcome.result else None,
            data_sha256=tuple(outcome.result.data_sha256.values()) if outcome.result else (),
            error=outcome.error.lines if outcome.error else (),
            exit_code=outcome.error.exit_code if outcome.error else 0,
            verdict=verdicts.get(id(outcome.recipe)) if outcome.recipe else None,
        )
        for outcome in outcomes
    )
    echo_json(document("batch", BatchDocument(outputs, passes, round(seconds, 3))))
