"""The recipe for signing in docs/provenance.md: its commands work as written, and each tampering fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import builders as b

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(
    r"^```sh\n((?:.*\n)*?)```$", (ROOT / "docs" / "provenance.md").read_text(encoding="utf-8"), re.MULTILINE
)
_, KEYS, SIGN, CHECK = BLOCKS

pytestmark = pytest.mark.oracle


def shell(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands of the page up to the first that fails, by this interpreter's programs."""
    scripts = folder / "bin"
    if not scripts.exists():
        scripts.mkdir()
        for name, module in (("lorabake", "lorabake"), ("model_signing", "model_signing")):
            (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
            (scripts / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["sh", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do what the page says, on a small model in place of the demo."""
    pytest.importorskip("model_signing")
    pytest.importorskip("OpenSSL")
    if shutil.which("openssl") is None:
        pytest.skip("no such program: openssl")
    folder = tmp_path_factory.mktemp("signed")
    recipes = folder / "recipes"
    b.save(recipes / "base.safetensors", b.sd1())
    b.sd1_lora(recipes / "lora.safetensors")
    b.recipe(recipes).rename(recipes / "demo.yaml")
    done = shell(KEYS + SIGN, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def release(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "copy"))


MODEL_SIGNING, LORABAKE = CHECK.replace(" --stage weights", "").splitlines()


def test_what_was_signed_is_verified_as_the_page_says(release: Path) -> None:
    done = shell(CHECK, release)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Verified" in done.stdout


def test_a_flipped_byte_fails(release: Path) -> None:
    path = release / "release" / "demo.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert shell(MODEL_SIGNING, release).returncode == 1
    assert "has another SHA-256 than the statement claims" in shell(LORABAKE, release).stdout


def test_an_added_file_fails(release: Path) -> None:
    (release / "release" / "pipeline.py").write_text("")
    done = shell(MODEL_SIGNING, release)
    assert done.returncode == 1
    assert "pipeline.py" in done.stdout + done.stderr


def test_a_swapped_lora_fails(release: Path) -> None:
    right = (release / "recipes" / "lora.safetensors").read_bytes()
    b.sd1_lora(release / "recipes" / "lora.safetensors", seed=9)
    assert shell(SIGN.splitlines()[0] + " --overwrite", release).returncode == 0
    assert shell(MODEL_SIGNING, release).returncode == 1
    (release / "recipes" / "lora.safetensors").write_bytes(right)
    done = shell(LORABAKE, release)
    assert done.returncode == 1
    assert re.search(r"fail input +lora.safetensors: \w+ \(limit \w+\) - has another SHA-256", done.stdout)
