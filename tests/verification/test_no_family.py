"""Verification knows no family: what they differ in is in `architectures/`, `components/` and `configs/`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lorabake.verification
from lorabake.architectures import architectures

FOLDER = Path(lorabake.verification.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))

# Names of families that are also words, or libraries.
WORDS = {"generic", "clip", "transformers", "diffusers", "svd"}
NAMES = {architecture.name for architecture in architectures()} - WORDS
# Classes of diffusers and transformers that are one model's.
CLASSES = re.compile(r"^(StableDiffusion|Flux|UNet\d?D|AutoencoderKL|CLIPText(Model|Config)|[A-Z]\w*Transformer\d*D)")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_no_text_or_name_is_a_familys(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            assert not (node.module or "").startswith("lorabake.architectures")
        for name in names:
            assert name not in NAMES
            assert not CLASSES.match(name)
