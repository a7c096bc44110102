"""Refresh what the documentation shows, by running it.

    python docs/terminal.py             rewrite the outputs in all pages, draw docs/demo.svg, sample docs/demo.png
                                        and docs/sweep.png

Every ```console block of a page is a transcript: its `$ ` lines are run, in order, in a folder of the page's own that
holds a copy of recipes/ with its inputs. A test runs them too, and compares (`mask` leaves out what differs from
run to run).
"""

# ruff: noqa: T201
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
VOLATILE = (
    (r"[\d.]+ [kMG]?B free", "… free"),
    (r"in [\d.]+ s \([\d.]+ s of it", "in … s (… s of it"),
    (r"[\d.]+ [kMG]B/s, mostly \w+, peak memory \d+ MiB(, computed on [\w+]+)?", "…, peak memory …"),
    (r"\b[0-9a-f]{64}\b", "…"),
    (r"^(structure|provenance|weights|samples) \([\d.]+ s\)", r"\1 (… s)"),
    (r"; [\d.]+ s\)", "; … s)"),
    (r"(subject +\S+): [0-9a-f]{12}", r"\1: …"),
)
PICTURE = (
    "lorabake bake recipes/demo.yaml",
    "lorabake verify recipes/demo.yaml --stage structure --stage weights",
    "lorabake bake recipes/llm.yaml",
    "python recipes/story.py out/dragon",
)


def prepare(folder: Path) -> None:
    """Copy the recipes into a folder and make their inputs there."""
    made = shutil.ignore_patterns("inputs", "__pycache__")
    shutil.copytree(ROOT / "recipes", folder / "recipes", ignore=made)
    script = ROOT / "recipes" / "make_inputs.py"
    subprocess.run([sys.executable, script, folder / "recipes" / "inputs"], check=True, capture_output=True)


def run(command: str, folder: Path) -> str:
    """Run one shell command there and return what it prints, both streams together.

    A slow machine also says that it is still at work; readers are not shown that.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "80"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines = done.stdout.replace(f"{folder}/", "").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines if not line.startswith("still at work: "))


def transcript(block: str, folder: Path) -> str:
    """Run the commands of one block and return the block as it ought to be."""
    commands = [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"$ {command}\n{run(command, folder)}" for command in commands)


def mask(text: str) -> str:
    """Leave out sizes of disks, times and digests."""
    for pattern, word in VOLATILE:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return text


def picture(text: str, columns: int = 126) -> str:
    """Draw a transcript as a terminal: plain SVG text on a dark ground."""
    rows = [
        (line.startswith("$ "), piece)
        for line in text.splitlines()
        for piece in textwrap.wrap(line, columns, subsequent_indent="    ") or [""]
    ]
    size, pitch, margin = 7.83, 19, 20
    width, height = round(columns * size) + 2 * margin, len(rows) * pitch + 3 * margin
    fonts = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"',
        f' viewBox="0 0 {width} {height}">',
        "<title>lorabake bakes two LoRAs into a checkpoint and proves it</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#16181d"/>',
        *(f'<circle cx="{margin + i * 18}" cy="18" r="5" fill="#3a3f4a"/>' for i in range(3)),
        f'<g font-family="{fonts}" font-size="13" xml:space="preserve">',
    ]
    for number, (is_command, line) in enumerate(rows):
        colour = "#7fd6a2" if is_command else "#d5d9e0"
        y = 2.5 * margin + number * pitch
        if line:
            place = f'x="{margin}" y="{y:g}" textLength="{len(line) * size:.1f}"'
            shapes.append(f'<text {place} fill="{colour}">{escape(line)}</text>')
    return "\n".join([*shapes, "</g>", "</svg>", ""])


def refresh(page: Path, folder: Path) -> None:
    """Rewrite the transcripts of one page."""
    text = page.read_text(encoding="utf-8")
    page.write_text(BLOCK.sub(lambda match: transcript(match[0], folder), text), encoding="utf-8")


def main() -> None:
    """Rewrite the pages' transcripts and the pictures."""
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name).resolve() / "fresh"
        prepare(fresh)
        for page in PAGES:
            if BLOCK.search(page.read_text(encoding="utf-8")):
                refresh(page, shutil.copytree(fresh, fresh.with_name(page.stem)))
        shown = "\n".join(f"$ {command}\n{run(command, fresh)}" for command in PICTURE)
        (ROOT / "docs" / "demo.svg").write_text(picture(shown), encoding="utf-8")
        run("lorabake verify recipes/demo.yaml --stage samples --report out/report", fresh)
        shutil.copy(fresh / "out" / "report" / "grid.png", ROOT / "docs" / "demo.png")
        run("lorabake batch recipes/sweep.yaml --verify out/sweep_report", fresh)
        shutil.copy(fresh / "out" / "sweep_report" / "grid.png", ROOT / "docs" / "sweep.png")
    print("the pages, docs/demo.svg, docs/demo.png and docs/sweep.png are up to date")


if __name__ == "__main__":
    main()
