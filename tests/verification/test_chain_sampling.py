"""The whole chain on the demo, as a user runs it: bake, verify with pictures, report."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from lorabake.cli import lorabake
from lorabake.verification.samples import NEEDED
from tests.documents import check

RECIPES = Path(__file__).parents[2] / "recipes"

pytestmark = pytest.mark.skipif(any(find_spec(name) is None for name in NEEDED), reason="lorabake[verify] is missing")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(lorabake, [*map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value or 0, result.output


def test_bake_verify_report(tmp_path: Path) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    shutil.copy(RECIPES / "demo.yaml", recipes)
    (recipes / "demo").symlink_to(RECIPES / "demo")
    recipe, report = recipes / "demo.yaml", tmp_path / "report"
    run("bake", recipe, "--no-fsync")
    code, output = run("verify", recipe, "--strengths", "0,1", "--report", report)
    assert code == 0, output
    assert output.splitlines()[-2].startswith("Verified: ")
    told = check((report / "report.json").read_text())
    assert told["verdict"] == "verified"
    assert told["samples"]["reference"] == ["diffusers", "peft"]
    assert len(told["samples"]["pictures"]) == 4
    for each in told["samples"]["pictures"]:
        likeness = {name: figures["latents"] for name, figures in each["likeness"].items()}
        assert likeness["baked"] < 2 * likeness["floor"]
    changed = [each["likeness"]["base"]["latents"] for each in told["samples"]["pictures"]]
    assert max(changed) > 0.5
    page = (report / "index.html").read_text()
    assert page.count("data:image/png") > 20
    assert (report / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "junit.xml").exists()
    assert (report / "summary.md").exists()
