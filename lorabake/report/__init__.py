"""Show a verification, or those of several outputs: one HTML page, JSON, JUnit XML, Markdown and a picture grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lorabake.arguments import AnyPath, instance, path_of, well_called
from lorabake.errors import SurroundingsError
from lorabake.report import grid, html, junit, markdown, overview, record, sheet
from lorabake.report.portable import portable, portable_batch
from lorabake.verification.findings import Verification
from lorabake.verification.many import VerifiedBatch
from lorabake.writing.whole import write_whole

__all__ = ["FILES", "OUTPUTS", "portable", "write", "write_all", "write_report"]

FILES = {
    "html": "index.html",
    "json": "report.json",
    "junit": "junit.xml",
    "markdown": "summary.md",
    "grid": grid.FILE,
}
"""The files that a report consists of, by form; the grid only where pictures were sampled."""

OUTPUTS = "outputs"
"""The folder for the reports on single outputs, in that on all of them."""


@well_called('write_report(verification, "report")')
def write_report(verification: Verification, folder: AnyPath) -> dict[str, Path]:
    """Write the report on a verification into a folder; return its files by form: html, json, junit, markdown, grid.

    The folder is made where it is missing; files of these names are replaced. `grid` is there where pictures were
    sampled. Raise SurroundingsError where the folder takes no files.

    Examples:
        >>> options = lorabake.VerifyOptions(stages=["structure", "weights"], digests=True)
        >>> verification = lorabake.verify("recipe.yaml", options=options)
        >>> files = lorabake.write_report(verification, "report")
        >>> files["html"].name
        'index.html'
    """
    found = instance(verification, Verification, "verification", "what verify returned")
    return write(found, path_of(folder, "folder"))


def write(verification: Verification, folder: Path, overview: str = "") -> dict[str, Path]:
    """Write every form of the report into a folder, made where it is missing; return the files by form.

    The same verification gives the same bytes. Files of these names are replaced. `overview` is the address of the
    report on all outputs, if this is one of several. Raise SurroundingsError where the folder takes no files.
    """
    verification = portable(verification, folder)
    contents = {
        "html": html.render(verification, overview),
        "json": record.render(verification),
        "junit": junit.render(verification),
        "markdown": markdown.render(verification),
    }
    if verification.samples and verification.samples.pictures:
        contents["grid"] = grid.render(verification.samples.pictures)
    return _written(contents, folder)


def write_all(batch: VerifiedBatch, folder: Path) -> dict[str, Path]:
    """Write the report on several outputs into a folder, as `write` does for one; `grid` shows all their pictures.

    The pages of outputs lie below OUTPUTS; whoever verified them wrote these.
    """
    batch = portable_batch(batch, folder)
    contents = {
        "html": overview.render(batch),
        "json": record.render_all(batch),
        "junit": junit.render_all(batch),
        "markdown": markdown.render_all(batch),
    }
    if any(sample.picture for output in batch.outputs for sample in output.samples):
        contents["grid"] = sheet.render(batch)
    return _written(contents, folder)


def _written(contents: Mapping[str, bytes], folder: Path) -> dict[str, Path]:
    written = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form, content in contents.items():
            written[form] = folder / FILES[form]
            write_whole(written[form], content)
    except OSError as error:
        raise SurroundingsError(f"{folder}: cannot write the report: {error.strerror}") from None
    return written
