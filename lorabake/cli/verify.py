"""`lorabake verify`: Prove that a checkpoint is what its recipe says.

Print findings and a verdict, and write a report to look at.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click

from lorabake.cli import CONTEXT, example, internal_error
from lorabake.cli.devices import complete_device
from lorabake.cli.messages import messages
from lorabake.cli.places import check_apart, check_writable, files_of
from lorabake.cli.progress import Bar
from lorabake.cli.proofs import (
    COLOURS,
    LEVELS,
    Shows,
    line_of,
    make_folder,
    several,
    text_of,
    verify_several,
    write_report_file,
)
from lorabake.cli.recipe_options import DOWNLOAD, recipe_options
from lorabake.cli.show import shown
from lorabake.cli.terminal import Coloured, Part, echo, echo_json
from lorabake.errors import INTERNAL, RecipeError
from lorabake.recipe import Recipe
from lorabake.recipe.options import Options
from lorabake.sources.received import Received, received, recipe_in
from lorabake.verification import ORDER, STAGES, VerifyOptions
from lorabake.verification import verify as run_verify
from lorabake.verification.findings import UNCOMPARED, Finding, SampleOptions, Status, Verdict, Verification

VERDICTS = {
    Verdict.VERIFIED: ("green", " is what its recipe says"),
    Verdict.MISMATCH: ("red", " is not what its recipe says"),
    Verdict.NOT_FINISHED: ("magenta", ""),
    Verdict.NOT_CHECKED: ("yellow", ""),
}
"""The colour of each verdict, and what is said of the file."""


STOPPED = 130
"""The exit code of what a signal stopped."""

ARGUMENTS = "lorabake.arguments"
"""The key of a context's `meta` for the arguments as they were given."""


class Recorded(click.Command):
    """Keep the arguments as they were given, for the report."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and keep them."""
        ctx.meta[ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


@click.command(
    cls=Recorded,
    context_settings=CONTEXT,
    epilog=example(
        "verify recipe.yaml",
        "verify sweep.yaml --report report",
        "verify baked.safetensors --inputs models --report report",
        "verify --base base.safetensors --lora style.safetensors=0.8 -o baked.safetensors",
    ),
)
@recipe_options("RECIPE|FILE", downloads=False, several=True)
@DOWNLOAD
@click.option(
    "--baked",
    "-o",
    "--output",
    "baked",
    type=click.Path(path_type=Path),
    help="The checkpoint to look at.  [default: the recipe's output]",
)
@click.option(
    "--inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Look for FILE's inputs in this folder and below, by name and digest. Repeatable.  [default: beside FILE, "
    "and the current folder]",
)
@click.option("--stage", "stages", multiple=True, type=click.Choice(ORDER), help="Only this stage. Repeatable.")
@click.option("--sample-weights", type=click.IntRange(1), metavar="N", help="Look only at N tensors, evenly spread.")
@click.option("--prompt", "prompts", multiple=True, help="Sample this prompt instead of the recipe's. Repeatable.")
@click.option("--seed", type=click.IntRange(0), help="The seed of the first noise.")
@click.option("--steps", type=click.IntRange(1), help="How many denoising steps.")
@click.option("--size", metavar="SIDE|WxH", help="The pictures' size in pixels.")
@click.option(
    "--device", shell_complete=complete_device, help="Sample on this device: cpu (default), cuda, cuda:1, mps."
)
@click.option("--strengths", metavar="0,0.5,1", help="Draw a sweep: all strengths times each of these factors.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Write the report to this folder.")
@click.option(
    "--date", metavar="DATE", help="Write this date into the report, such as 2026-11-29.  [default: no date]"
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write what was found as JUnit XML.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the verdict and what is wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def verify(
    said: Options,
    files: tuple[Path, ...],
    download: bool,
    baked: Path | None,
    inputs: tuple[Path, ...],
    stages: tuple[str, ...],
    sample_weights: int | None,
    prompts: tuple[str, ...],
    seed: int | None,
    steps: int | None,
    size: str | None,
    device: str | None,
    strengths: str | None,
    report: Path | None,
    date: str | None,
    junit: Path | None,
    quiet: bool,
    as_json: bool,
) -> int:
    """Prove that a checkpoint is what a recipe says.

    Give the RECIPE, or a FILE that lorabake baked: its header holds the recipe. Or give the options that baked it.
    Give several, a folder of recipes, or a recipe with a matrix: then one report shows all outputs, and each base
    draws its pictures once.

    \b
    There are three stages:
      structure  compares headers
      weights    computes every tensor again, in float64, and compares
      samples    makes pictures or texts by the base, by the base with LoRAs at
                 run time, and by the checkpoint; needs prompts, and the packages
                 of the extra "verify"
    --stage quick takes the place of weights: it checks random sums of each row,
    in a third of a bake's time. If a statement of how it was made (NAME.intoto.json)
    lies beside, the stage provenance computes again what it claims.

    \b
    Exit codes: 0 it is what the recipe says, 1 it is not, 2 an input is wrong or
    nothing could be checked, 3 the machine has a problem or an extra is missing,
    4 lorabake itself failed. If a stage breaks off, the others still count.
    """
    options = VerifyOptions(
        stages=stages or STAGES,
        sample_weights=sample_weights,
        digests=report is not None,
        command=shlex.join(["lorabake", "verify", *click.get_current_context().meta[ARGUMENTS]]),
        date=_date(date),
        samples=SampleOptions(
            prompts=prompts or None,
            seed=seed,
            steps=steps,
            size=_size(size),
            device=device,
            strengths=_strengths(strengths),
        ),
    )
    if junit is not None:
        check_writable(junit, "report")
    shows = Shows(report, junit, is_quiet=quiet, as_json=as_json)
    if (wanted := several(said, files, inputs)) is not None:
        return verify_several(wanted, options, shows, downloads=download).exit_code
    if download:
        from lorabake.cli.fetching import fetch_shown, recipes_to_fetch

        fetch_shown(recipes_to_fetch(said), talks=shows.talks)
    given, baked = _recipe(said, inputs)
    if report is not None:
        recipe = recipe_in(given)
        output = baked if baked is not None else recipe.locate(recipe.output.path)
        from lorabake.report import FILES

        places = [report / name for name in FILES.values()]
        check_apart([report, *places], "report", files_of(recipe, output), [output])
        make_folder(report, places)
    bar = Bar(shown=shows.talks)
    told = Told(bar, is_quiet=quiet, is_shown=not as_json)
    options = replace(
        options,
        samples=replace(options.samples, progress=bar.step),
        begin=bar.begin,
        progress=bar.advance,
        tell=_tell,
        ended=told.stage,
    )
    try:
        verification = run_verify(given, baked, options)
    except KeyboardInterrupt:
        bar.close()
        echo(told.stopped(options.stages), err=True)
        return STOPPED
    finally:
        bar.close()
    if not as_json:
        echo(*_verdict(verification))
    if report is not None or as_json or junit is not None:
        from lorabake import report as reporting

        if junit is not None:
            write_report_file(junit, reporting.junit.render(reporting.portable(verification, junit.parent)))
        if as_json:
            echo_json(reporting.record.compose(reporting.portable(verification, report)))
        if report is not None:
            written = reporting.write(verification, report)
            if not (as_json or quiet):
                echo(f"report: {shown(written['html'])}")
    for failure in verification.failures:
        if failure.exit_code == INTERNAL:
            internal_error(failure.traceback)
    return verification.exit_code


def _recipe(said: Options, inputs: tuple[Path, ...]) -> tuple[Recipe | Received, Path | None]:
    """Return the recipe that was given, or that a baked file holds, and the checkpoint if it was named."""
    file, baked = said.file, said.output
    if file is not None and file.suffix.lower() not in (".yaml", ".yml"):
        if baked is not None:
            raise RecipeError(
                f"{file}: is no recipe (.yaml), so --baked has nothing to be compared with",
                "Leave --baked out to verify this file, or give the recipe in its place.",
            )
        if not (said.bases or said.loras):
            return received(file, inputs, said.changes).complete(), file
        said, baked = replace(said, file=None, output=file), file
    if inputs:
        raise RecipeError(
            "--inputs is for a FILE without its recipe; a recipe says where its inputs lie", "Leave --inputs out."
        )
    return said.recipe(), baked


def _tell(finding: Finding) -> None:
    """Print at once what keeps a stage from running; the other stages go on, and the findings have the advice."""
    word = Coloured(finding.status.value, COLOURS[finding.status])
    echo(word, f": {finding.stage}: {finding.note.partition('; ')[0]}", err=True)


class Told:
    """Print the findings of each stage when it is over, and remember which stages are."""

    def __init__(self, bar: Bar, *, is_quiet: bool, is_shown: bool) -> None:
        self._bar, self._is_quiet, self._is_shown = bar, is_quiet, is_shown
        self._over: list[str] = []

    def stage(self, stage: str, findings: Sequence[Finding], seconds: float | None) -> None:
        """Print a stage's findings below its name."""
        self._over.append(stage)
        least = Status.WARN if self._is_quiet else Status.PASS
        rows = [row for row in findings if row.status.severity >= least.severity]
        if rows and self._is_shown:
            self._bar.remove()
            took = f" ({seconds:.1f} s)" if seconds is not None and not self._is_quiet else ""
            echo(Coloured(stage, bold=True), took)
            for finding in rows:
                echo(*line_of(finding))
        for finding in rows:
            if (level := LEVELS.get(finding.status)) is not None:
                messages.also(level, text_of(line_of(finding)))

    def stopped(self, stages: Sequence[str]) -> str:
        """Say how far the work was when it was stopped; it had changed nothing."""
        over = [stage for stage in ORDER if stage in stages and stage in self._over]
        left = [stage for stage in ORDER if stage in stages and stage not in self._over]
        if not over or not left:
            return "stopped before any stage was over: nothing was found out"
        shown = ", and its findings were printed" if self._is_shown else ""
        return f"stopped: {' and '.join(over)} was over{shown}; not over: {', '.join(left)}"


def _verdict(verification: Verification) -> tuple[Part, ...]:
    """Return the last line: the answer, and how many findings there are of each status."""
    counts = {status: sum(row.status is status for row in verification.findings) for status in Status}
    told = ", ".join(f"{count} {status.value}" for status, count in counts.items() if count)
    colour, meaning = VERDICTS[verification.verdict]
    if verification.verdict is Verdict.VERIFIED and not verification.has_compared_weights:
        meaning += f", {UNCOMPARED}"
    name = shown(verification.baked)
    return Coloured(verification.verdict.word, colour, bold=True), f": {name}{meaning} ({told})"


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text.lower())
    if sides is None:
        raise RecipeError(f"--size {text}: give a side in pixels, or two as 768x512")
    return int(sides[1]), int(sides[2] or sides[1])


def _date(text: str | None) -> str:
    try:
        return text if text and datetime.fromisoformat(text) else ""
    except ValueError:
        raise RecipeError(f"--date {text}: give a date such as 2026-11-29, or with a time 2026-11-29T12:00") from None


def _strengths(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        values = tuple(float(number) for number in text.split(","))
    except ValueError:
        values = (float("nan"),)
    if any(value - value for value in values):
        raise RecipeError(f"--strengths {text}: give numbers with commas between them, such as 0,0.5,1")
    return tuple(sorted(set(values)))
