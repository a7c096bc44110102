"""The packages are whole: the wheel has every file of lorabake, the source package every file of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
IGNORED = ("__pycache__", "*.pyc", "*.egg-info", ".venv", ".git", "out", "inputs", "build", "dist", ".*_cache")
BUILD = """
import sys
from setuptools import build_meta

folder = sys.argv[1]
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""

pytest.importorskip("setuptools", reason="builds the packages: pip install 'setuptools>=77'")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source package, built in a copy of the repository."""
    copy, made = tmp_path_factory.mktemp("source") / "lorabake", tmp_path_factory.mktemp("packages")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*IGNORED))
    command = [sys.executable, "-c", BUILD, str(made)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def metadata(packages: Path) -> Message:
    (wheel,) = packages.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return BytesParser().parsebytes(archive.read(name))


def files(folder: Path, start: Path) -> set[str]:
    return {
        path.relative_to(start).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "__pycache__" not in path.parts
    }


def test_the_wheel_has_every_file_of_the_package(packages: Path) -> None:
    (wheel,) = packages.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if not re.match(r"lorabake-[^/]*\.dist-info/", name)}
    assert there == files(ROOT / "lorabake", ROOT)


def test_the_source_package_has_every_file_of_the_repository(packages: Path) -> None:
    (source,) = packages.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        there = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    made = {name for name in there if name in ("PKG-INFO", "setup.cfg") or name.startswith("lorabake.egg-info/")}
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        due = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
        assert due <= there, "add it to MANIFEST.in"
    else:  # the source package itself: what it holds goes into the next one
        due = files(ROOT / "tests", ROOT) | files(ROOT / "docs", ROOT)
        assert due <= there
    assert {name for name in there - made if name.startswith(("out/", "recipes/inputs/", ".venv/"))} == set()


def test_links_of_the_long_description_work_anywhere(metadata: Message) -> None:
    text = metadata.get_payload()
    assert isinstance(text, str)
    assert metadata["Description-Content-Type"] == "text/markdown"
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) >= len(re.findall(r"\]\(", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    own = f"lorabake/lorabake/(?:blob/|tree/)?v{metadata['Version']}/"
    paths = [
        match[1] for target in targets if (match := re.match(rf"https://[a-z.]+/{own}([^#]+)", target)) is not None
    ]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_an_index_can_sort_it(metadata: Message) -> None:
    classifiers = metadata.get_all("Classifier", [])
    assert "Operating System :: POSIX :: Linux" in classifiers
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    tried = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    minors = [name.rpartition(" ")[2] for name in classifiers if re.search(r":: 3\.\d+$", name)]
    assert minors == tried
    assert metadata["Requires-Python"] == f">={tried[0]}"
    assert metadata["Keywords"]
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= {
        line.partition(",")[0] for line in metadata.get_all("Project-URL", [])
    }


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_ask_for_little(path: Path) -> None:
    """Nothing may write to the repository; only the job that publishes gets an identity."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for name, job in workflow["jobs"].items():
        allowed = {"id-token": "write"} if name == "publish" else {"contents": "read"}
        assert job.get("permissions", allowed) == allowed
        for step in job["steps"]:
            assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v0")), "pin actions by their major version"


def test_workflows_call_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for target in re.findall(r"\bmake (?:-C \S+ )?([a-z]+)", path.read_text(encoding="utf-8")):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
