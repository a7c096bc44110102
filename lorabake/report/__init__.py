"""Show a verification: one HTML page, JSON, JUnit XML, Markdown and a picture grid."""

from __future__ import annotations

from pathlib import Path

from lorabake.errors import SurroundingsError
from lorabake.report import grid, html, junit, markdown, record
from lorabake.verification.findings import Verification
from lorabake.writing.whole import write_whole

__all__ = ["write"]


def write(verification: Verification, folder: Path) -> dict[str, Path]:
    """Write every form of the report into a folder, made where it is missing; return the files by form.

    index.html, report.json, junit.xml, summary.md, and grid.png where pictures were sampled. The same verification
    gives the same bytes. Files of these names are replaced. Raise SurroundingsError where the folder takes no files.
    """
    files: dict[str, tuple[str, bytes]] = {
        "html": ("index.html", html.render(verification)),
        "json": ("report.json", record.render(verification)),
        "junit": ("junit.xml", junit.render(verification)),
        "markdown": ("summary.md", markdown.render(verification)),
    }
    if verification.samples and verification.samples.pictures:
        files["grid"] = (grid.FILE, grid.render(verification.samples.pictures))
    written = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form, (name, content) in files.items():
            written[form] = folder / name
            write_whole(written[form], content)
    except OSError as error:
        raise SurroundingsError(f"{folder}: cannot write the report: {error.strerror}") from None
    return written
