"""The site: every page is on it, its links lead somewhere, and mkdocs builds it without a warning."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import lorabake

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_of_docs", DOCS / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: lorabake\.(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(lorabake.__all__)


def test_every_page_is_in_the_navigation_once(site: ModuleType) -> None:
    names = {path.stem for path in DOCS.glob("*.md")}
    listed = [page for group in site.navigation(names) for pages in group.values() for page in pages if ".md" in page]
    assert sorted(listed) == sorted(f"{name}.md" for name in names)
    assert {"More": ["new.md"]} in site.navigation({*names, "new"})


def test_links_lead_to_pages_or_into_the_repository(site: ModuleType) -> None:
    def led(link: str, folder: str = "docs") -> str:
        text: str = site.led(f"[x]({link})", folder, {"kinds.md", "demo.png"}, CONFIG["repo_url"])
        return text.removeprefix("[x](").removesuffix(")")

    assert led("kinds.md#experts") == "kinds.md#experts"
    assert led("docs/kinds.md", "") == "kinds.md"
    assert led(f"{site.RAW}docs/demo.png", "") == "demo.png"
    assert led("../README.md") == "index.md"
    assert led("../recipes/") == f"{CONFIG['repo_url']}/tree/main/recipes"
    assert led("../CONTRIBUTING.md") == f"{CONFIG['repo_url']}/blob/main/CONTRIBUTING.md"
    assert led("https://example.org/a.md") == "https://example.org/a.md"
    assert led("#anchor") == "#anchor"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="needs mkdocs: make test installs it, or pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in lorabake.__all__:
        assert f'id="lorabake.{name}"' in reference, name
    assert "Bake a recipe, or a plan made of one" in reference
    for page in DOCS.glob("*.md"):
        assert (tmp_path / "site" / page.stem / "index.html").is_file(), page.name
