"""Verify several outputs for a command: find out which are meant, print a line for each, and write one report."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorabake.checking import recipes_in
from lorabake.cli import ARGUMENTS, internal_error
from lorabake.cli.messages import Level, messages
from lorabake.cli.places import check_apart, files_of
from lorabake.cli.progress import Bar
from lorabake.cli.reading import read_all
from lorabake.cli.show import shown
from lorabake.cli.terminal import Coloured, Part, echo, echo_json
from lorabake.errors import INTERNAL, RecipeError, SurroundingsError, TargetError
from lorabake.recipe import Recipe
from lorabake.recipe.options import Options
from lorabake.sources.received import Received, received, recipe_in
from lorabake.tensors.reader import is_there
from lorabake.verification import VerifyOptions
from lorabake.verification.findings import Finding, Status, Verdict
from lorabake.verification.many import VerifiedBatch, VerifiedOutput
from lorabake.writing.whole import write_whole

if TYPE_CHECKING:
    from lorabake.batch import Outcome

COLOURS = {
    Status.PASS: "green",
    Status.SKIP: "bright_black",
    Status.WARN: "yellow",
    Status.ERROR: "magenta",
    Status.FAIL: "red",
}
LEVELS: dict[Status, Level] = {Status.WARN: "warning", Status.ERROR: "error", Status.FAIL: "error"}
"""How a finding is annotated in GitHub's jobs."""

VERDICT_COLOURS = {
    Verdict.VERIFIED: "green",
    Verdict.MISMATCH: "red",
    Verdict.NOT_FINISHED: "magenta",
    Verdict.NOT_CHECKED: "yellow",
}

MARK = b'<meta name="generator" content="lorabake">'
MARK_WITHIN = 4096
"""What every page of a report has in its first bytes."""

ROOM = 1 << 20
"""Bytes that a report takes, about."""

BAKED = ("baked", "current")
"""What is said of outputs of a batch that are there."""

MOST_LINES = 5
"""How many lines say what is wrong with one output of several."""

RECIPES = (".yaml", ".yml")

MARKS_OF_A_MODEL = ("config.json", "model_index.json", "adapter_config.json", "*.index.json")
"""Files by which a folder is a checkpoint, also if there are recipes in it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Hold the outputs that are to be verified, and those of which that cannot be: what is known of them by now."""

    given: tuple[Recipe | Received, ...]
    failed: tuple[VerifiedOutput, ...] = ()


@dataclass(frozen=True, slots=True)
class Shows:
    """Say where the results go: into a folder, into a JUnit file, and to the screen.

    `is_silent` prints nothing but errors: the caller prints a document of its own.
    """

    report: Path | None = None
    junit: Path | None = None
    is_quiet: bool = False
    as_json: bool = False
    is_silent: bool = False

    @property
    def talks(self) -> bool:
        """Tell whether progress is shown."""
        return not (self.is_quiet or self.as_json or self.is_silent)

    @property
    def tells(self) -> bool:
        """Tell whether results are printed for people."""
        return not (self.as_json or self.is_silent)


def several(said: Options, files: Sequence[Path], inputs: tuple[Path, ...]) -> Wanted | None:
    """Find the outputs that are meant; None where a command line means one, which has options of its own.

    Raise RecipeError for options that go with one output only.
    """
    are_many = len(files) > 1 or any(_holds_recipes(path) for path in files)
    if not are_many and (not files or files[0].suffix.lower() not in RECIPES or said.bases or said.loras):
        return None
    if not are_many and (said.output is not None or len(said.recipes()) == 1):
        return None
    _check_options(said, files, inputs)

    def read_one(path: Path) -> Sequence[Recipe | Received]:
        if path.suffix.lower() in RECIPES:
            return replace(said, file=path, only=()).recipes()
        return [received(path, inputs, said.changes)]

    read = read_all(files, _files(files), read_one, said.only)
    return Wanted(read.given, tuple(VerifiedOutput.failed(str(each.path), each.error) for each in read.unread))


def _holds_recipes(path: Path) -> bool:
    """Tell whether a path is a folder of recipes, and not a checkpoint."""
    if not path.is_dir() or any(next(path.glob(name), None) for name in MARKS_OF_A_MODEL):
        return False
    return next(recipes_in([path]), None) is not None


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    """Yield the recipes of folders, and all other paths as they are."""
    for path in paths:
        yield from recipes_in([path]) if _holds_recipes(path) else (path,)


def _check_options(said: Options, files: Sequence[Path], inputs: tuple[Path, ...]) -> None:
    """Raise RecipeError for options that several outputs cannot have."""
    checkpoints = [path for path in files if path.suffix.lower() not in RECIPES and not _holds_recipes(path)]
    recipes = [path for path in files if path not in checkpoints]
    if len(recipes) == 1 and len(checkpoints) == 1 and is_there(checkpoints[0]):
        raise RecipeError(
            f"{checkpoints[0]}: is no recipe (.yaml)",
            f"To compare it with the recipe, write lorabake verify {recipes[0]} --baked {checkpoints[0]}",
        )
    if said.bases or said.loras:
        raise RecipeError(f"{files[0]}: stands without an option, and --base and --lora are one more recipe")
    if said.output is not None:
        raise RecipeError(f"{said.output}: is one checkpoint, and there are several outputs", "Leave --baked out.")
    if inputs and recipes:
        raise RecipeError(
            "--inputs is for a FILE without its recipe; a recipe says where its inputs lie", "Leave --inputs out."
        )


def verify_several(wanted: Wanted, options: VerifyOptions, shows: Shows, *, downloads: bool = False) -> VerifiedBatch:
    """Verify all outputs; print a line for each, and a summary as the last one."""
    from lorabake.report import FILES
    from lorabake.verifying import verify_many

    if shows.report is not None:
        check_report(shows.report, wanted.given)
    if downloads:
        from lorabake.cli.fetching import fetch_shown

        fetch_shown([*map(recipe_in, wanted.given)], talks=shows.talks)
    bar = Bar(shown=shows.talks)
    told = _Told(bar, shows, len(wanted.given))
    options = replace(
        options,
        samples=replace(options.samples, progress=bar.step),
        begin=told.begin,
        progress=bar.advance,
        digests=shows.report is not None,
    )
    try:
        batch = verify_many(wanted.given, options, shows.report, wanted.failed, told.begun, told.ended)
    except KeyboardInterrupt:
        bar.close()
        place = f"; report: {shown(shows.report / FILES['html'])}" if shows.report is not None else ""
        echo(f"{told.over} of {told.count} outputs were looked at{place}", err=True)
        raise
    finally:
        bar.close()
    _show(batch, shows)
    return batch


def verify_baked(outcomes: Sequence[Outcome], shows: Shows) -> VerifiedBatch:
    """Verify what a batch has baked; what failed there is in the report, too."""
    baked = [outcome.recipe for outcome in outcomes if outcome.status in BAKED and outcome.recipe is not None]
    failed = [_not_baked(outcome) for outcome in outcomes if outcome.status not in BAKED]
    words = click.get_current_context().meta[ARGUMENTS]
    options = VerifyOptions(command=shlex.join(["lorabake", "batch", *words]))
    return verify_several(Wanted(tuple(baked), tuple(failed)), options, shows)


def _not_baked(outcome: Outcome) -> VerifiedOutput:
    error = outcome.error or TargetError(f"{outcome.name}: was not baked, because another recipe had failed")
    return VerifiedOutput.failed(outcome.name, error, outcome.recipe)


def check_report(report: Path, given: Iterable[Recipe | Received]) -> None:
    """Make the report's folder; raise TargetError where it would meet an output or an input."""
    from lorabake.report import FILES, OUTPUTS

    places = [report / name for name in FILES.values()]
    for each in given:
        recipe = recipe_in(each)
        output = each.baked if isinstance(each, Received) else recipe.locate(recipe.output.path)
        check_apart([report, report / OUTPUTS, *places], "report", files_of(recipe, output), [output])
    make_folder(report, places)


def _show(batch: VerifiedBatch, shows: Shows) -> None:
    from lorabake.report import FILES, junit, record
    from lorabake.report.portable import portable_batch
    from lorabake.report.wording import meaning_of_all

    told = portable_batch(batch, shows.report)
    if shows.junit is not None:
        write_report_file(shows.junit, junit.render_all(told))
    if shows.as_json:
        echo_json(record.compose_all(told))
    if shows.report is not None and shows.talks:
        echo(f"report: {shown(shows.report / FILES['html'])}")
    if shows.tells:
        word = Coloured(batch.verdict.word, VERDICT_COLOURS[batch.verdict], bold=True)
        echo(word, f": {meaning_of_all(batch)} ({batch.tally}; {batch.seconds:.1f} s)")
    failures = [failure for output in batch.outputs for failure in output.failures if failure.exit_code == INTERNAL]
    for failure in failures[:1]:
        internal_error(failure.traceback)


class _Told:
    """Print a line for each output that is over, and below it what is wrong; a warning of many is told once."""

    def __init__(self, bar: Bar, shows: Shows, count: int) -> None:
        self.bar, self.shows, self.count = bar, shows, count
        self.over, self._name = 0, ""
        self._warned: set[tuple[str, str, str]] = set()
        self._advised: set[str] = set()

    def begun(self, name: str) -> None:
        """Remember which output is looked at."""
        self._name = name

    def begin(self, what: str, total: int) -> None:
        """Show which output is looked at, and how."""
        self.bar.begin(f"{self.over + 1} of {self.count}, {self._name}: {what}", total)

    def ended(self, output: VerifiedOutput) -> None:
        """Tell of one output."""
        self.over += 1
        self.bar.remove()
        messages.recipe = output.recipe.file if output.recipe else None
        if output.error is not None:
            first, *rest = output.error.lines
            messages.error(f"{output.name}: {first}", *(line for line in rest if line not in self._advised))
            self._advised.update(rest)
            return
        counts = {status: sum(row.status is status for row in output.findings) for status in Status}
        told = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
        loud = [finding for finding in output.loud if self._is_new(finding)]
        if self.shows.tells and (loud or output.verdict is not Verdict.VERIFIED or not self.shows.is_quiet):
            assert output.verdict is not None
            word = Coloured(f"{output.verdict.word:<12}", VERDICT_COLOURS[output.verdict])
            echo(word, f" {output.name} ({told})")
            for finding in loud[:MOST_LINES]:
                echo(*line_of(finding))
            if len(loud) > MOST_LINES:
                echo(f"  {len(loud) - MOST_LINES} more")
        for finding in loud:
            if (level := LEVELS.get(finding.status)) is not None:
                messages.also(level, f"{output.name}: {text_of(line_of(finding))}")

    def _is_new(self, finding: Finding) -> bool:
        """Tell whether a finding has to be told: a warning is where no output before had it."""
        key = finding.check, finding.subject, finding.note
        is_known = finding.status is Status.WARN and key in self._warned
        self._warned.add(key)
        return not is_known


def line_of(finding: Finding) -> tuple[Part, ...]:
    """Write a finding as one line."""
    status = Coloured(f"{finding.status.value:4}", COLOURS[finding.status])
    limit = f" (limit {finding.limit})" if finding.limit and finding.limit != finding.measured else ""
    measured = f": {finding.measured}{limit}" if finding.measured else ""
    note = f" - {finding.note}" if finding.note else ""
    return "  ", status, f" {finding.check.partition('.')[2]:12} {finding.subject}{measured}{note}"


def text_of(parts: Sequence[Part]) -> str:
    """Return a line without its colours."""
    return "".join(part.text if isinstance(part, Coloured) else part for part in parts).strip()


def make_folder(folder: Path, places: Iterable[Path]) -> None:
    """Make the report's folder before anything takes its time, with room for its files at `places`.

    Raise SurroundingsError where that cannot be, and TargetError where a folder has a file's name, and where the page
    that is there is not lorabake's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SurroundingsError(f"{folder}: cannot write the report: {error.strerror}") from None
    if taken := next((place for place in places if place.is_dir()), None):
        raise TargetError(f"{taken}: is a folder, and a file of the report has this name")
    if other := next((place for place in places if place.suffix == ".html" and not _is_report(place)), None):
        raise TargetError(f"{other}: is there, and is no report of lorabake's; choose another folder for the report")
    try:
        write_whole(folder / ".lorabake.probe", bytes(ROOM))
        (folder / ".lorabake.probe").unlink()
    except OSError as error:
        raise SurroundingsError(f"{folder}: cannot write the report: {error.strerror}") from None


def _is_report(page: Path) -> bool:
    """Tell whether a page may be replaced: it is a report, or it is not there."""
    try:
        with page.open("rb") as file:
            return MARK in file.read(MARK_WITHIN)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise SurroundingsError(f"{page}: cannot be read: {error.strerror}") from None


def write_report_file(path: Path, content: bytes) -> None:
    """Write one file of a report; raise SurroundingsError where that cannot be."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise SurroundingsError(f"{path}: the report cannot be written: {error.strerror}") from None
