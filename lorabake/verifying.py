"""Verify many outputs: each like one alone, with what their bases draw shared, and one report for all.

What the report shows of an output is kept, and everything else is let go before the next one is opened.
"""

from __future__ import annotations

import io
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake.arguments import AnyPath, instance, path_of, well_called
from lorabake.errors import LorabakeError, TargetError
from lorabake.machine import worded
from lorabake.paths import name_of_output
from lorabake.progress import NotebookBar, unseen
from lorabake.recipe import Recipe
from lorabake.report import OUTPUTS, portable, write, write_all
from lorabake.report.pictures import png
from lorabake.report.wording import setting
from lorabake.sources.received import Received, recipe_in
from lorabake.verification import VerifyOptions, verify_one
from lorabake.verification.findings import Environment, Verification
from lorabake.verification.many import KeptSample, SmallPicture, VerifiedBatch, VerifiedOutput
from lorabake.verification.samples.album import Album
from lorabake.verification.stages import shown_by

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels, Samples

SIDE = 256
"""The longer side of a small picture, in pixels; a larger one is made smaller."""

QUALITY = 85
"""JPEG's quality of a picture that was made smaller."""

LETTERS = 400
"""Letters that are kept of a text."""


@well_called('verify_all(load_recipes("sweep.yaml"), report="report")')
def verify_all(
    recipes: Iterable[Recipe],
    options: VerifyOptions | None = None,
    *,
    report: AnyPath | None = None,
    ended: Callable[[VerifiedOutput], None] = unseen,
) -> VerifiedBatch:
    """Verify the output of each recipe; return what became of each, in their order.

    `recipes` are what `load_recipes` returned. The samples of a base are made once for each prompt and setting. An
    output that is missing, or that cannot be looked at, stops none of the others: its `error` says why. With
    `report`, a folder, the report on all is written there, and the page of each output below it. `ended` is told what
    became of each output as it is over. Raise SurroundingsError where the folder takes no files.

    Examples:
        >>> options = lorabake.VerifyOptions(stages=["structure", "weights"])
        >>> batch = lorabake.verify_all(lorabake.load_recipes("recipe.yaml"), options, report="report")
        >>> batch.counts
        {'verified': 1}
    """
    options = instance(options or VerifyOptions(), VerifyOptions, "options", "VerifyOptions(…)")
    folder = None if report is None else path_of(report, "report")
    return verify_many([*recipes], options, folder, (), unseen, ended)


def verify_many(
    given: Sequence[Recipe | Received],
    options: VerifyOptions,
    report: Path | None,
    failed: Iterable[VerifiedOutput],
    begun: Callable[[str], None],
    ended: Callable[[VerifiedOutput], None],
) -> VerifiedBatch:
    """Verify outputs, also those whose recipes came out of their headers; write the report into its folder.

    `failed` are outputs that cannot be looked at: the report shows them, too. `begun` is told each output's name. An
    interrupt leaves a report on the outputs that were looked at.
    """
    began = time.perf_counter()
    gathered = _Gathered(report, [*failed])
    with tempfile.TemporaryDirectory(prefix="lorabake-") as scratch, NotebookBar(shown=options.bar) as bar:
        looking = replace(shown_by(options, bar), digests=options.digests or report is not None)
        album = Album(Path(scratch))
        for number, each in enumerate(given):
            name = name_of(each)
            begun(name)
            try:
                ended(gathered.add(name, each, looking, album))
            except KeyboardInterrupt:
                if report is not None:
                    write_all(gathered.stopped(given[number:], time.perf_counter() - began), report)
                raise
    batch = gathered.batch(time.perf_counter() - began)
    if report is not None:
        write_all(batch, report)
    return batch


def name_of(given: Recipe | Received) -> str:
    """Return what an output is called."""
    return name_of_output(str(given.baked)) if isinstance(given, Received) else given.name


@dataclass(slots=True)
class _Gathered:
    """Gather what outputs bring; `folder` is the report's, or None."""

    folder: Path | None
    outputs: list[VerifiedOutput]
    bases: dict[tuple[object, ...], int] = field(default_factory=dict)
    kept: list[KeptSample] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    environment: Environment | None = None

    def batch(self, seconds: float) -> VerifiedBatch:
        """Return all of it."""
        return VerifiedBatch(tuple(self.outputs), tuple(self.kept), seconds, self.environment)

    def stopped(self, left: Iterable[Recipe | Received], seconds: float) -> VerifiedBatch:
        """Return what is there by now; the others are told as not looked at."""
        why = TargetError("it was not looked at, because the command was stopped")
        self.outputs += [
            VerifiedOutput.failed(name_of(each), why, each.recipe if isinstance(each, Received) else each)
            for each in left
        ]
        return self.batch(seconds)

    def add(self, name: str, given: Recipe | Received, options: VerifyOptions, album: Album) -> VerifiedOutput:
        """Verify one output, write its page, and keep what the report on all shows."""
        recipe = recipe_in(given)
        try:
            with worded():
                output = self._told(name, recipe, verify_one(given, options, album))
        except LorabakeError as error:
            output = VerifiedOutput.failed(name, error, recipe)
        self.outputs.append(output)
        return output

    def _told(self, name: str, recipe: Recipe, verification: Verification) -> VerifiedOutput:
        page = None
        told = portable(verification, self.folder)
        if self.folder is not None:
            page = f"{OUTPUTS}/{self._free(name)}/index.html"
            write(verification, (self.folder / page).parent, overview="../../index.html")
        self.environment = self.environment or told.environment
        base = recipe.base.portable_path
        samples = [*_samples(told.samples, "baked", "baked")] if told.samples else []
        bases = [self._place(sample) for sample in _samples(told.samples, "base", base)] if told.samples else []
        return VerifiedOutput(
            name,
            recipe,
            told.verdict,
            told.exit_code,
            told.findings,
            told.seconds,
            tuple(samples),
            tuple(bases),
            page,
            told.failures,
        )

    def _place(self, sample: KeptSample) -> int:
        """Keep a base's sample once; return its place."""
        key = sample.model, sample.prompt, sample.seed, sample.settings, sample.picture, sample.text
        if key not in self.bases:
            self.bases[key] = len(self.kept)
            self.kept.append(sample)
        return self.bases[key]

    def _free(self, name: str) -> str:
        """Return a name for an output's folder: letters that every disk takes, and no name twice."""
        plain = re.sub(r"[^\w.+=,-]+", "_", name, flags=re.ASCII).strip(".")[:100] or "output"
        free, number = plain, 2
        while free.casefold() in self.names:
            free, number = f"{plain}-{number}", number + 1
        self.names.add(free.casefold())
        return free


def _samples(samples: Samples, model: str, name: str) -> Iterator[KeptSample]:
    """Yield what a model made of each prompt, small."""
    how = ", ".join(
        f"{key.replace('_', ' ')} {setting(value)}"
        for key, value in samples.settings.items()
        if key in ("steps", "size", "guidance", "scheduler", "tokens")
    )
    for each in samples.pictures:
        yield KeptSample(name, each.prompt, each.seed, how, picture=_small(each.pictures[model]))
    for text in samples.texts:
        said = text.texts[model]
        yield KeptSample(name, text.prompt, None, how, text=said if len(said) <= LETTERS else f"{said[:LETTERS]}…")


def _small(pixels: Pixels) -> SmallPicture:
    """Make a picture small: as it is if it is that already, as PNG; else reduced, as JPEG."""
    height, width, _ = pixels.shape
    if max(height, width) <= SIDE:
        return SmallPicture(png(pixels), "png", width, height)
    from PIL import Image

    image = Image.fromarray(pixels).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return SmallPicture(buffer.getvalue(), "jpeg", image.width, image.height)
