"""`make` takes the build of torch that fits the machine, says which, and does not wait for an index out of reach."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("make") or not (ROOT / "tools").is_dir(),
    reason="runs the Makefile: needs Linux, make and a clone; install make (apt install make)",
)

PIP = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
"""

PYTHON = """#!/bin/sh
echo "torch 0.0+fake is installed"
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose virtual environment only writes down what pip is asked for."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, text in (("pip", PIP), ("python", PYTHON)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return tmp_path


class Index(http.server.BaseHTTPRequestHandler):
    """An index of packages that has torch."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def index() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
    server.shutdown()
    server.server_close()


def core(clone: Path, *settings: str, driver: str | None = None) -> tuple[str, list[str]]:
    """Make the virtual environment; return what is said, and what pip was asked for.

    `driver` is what nvidia-smi prints; without it there is none.
    """
    programs = clone / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text(f"#!/bin/sh\n{f'echo {driver}' if driver else 'exit 9'}\n")
    (programs / "nvidia-smi").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "no_proxy": "127.0.0.1",
        "MAKEFLAGS": "",
    }
    command = ["make", "-C", str(clone), ".venv/core", f"PYTHON={sys.executable}", *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    asked = (clone / ".venv" / "bin" / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["torch", "."]
    assert "torch 0.0+fake is installed" in done.stdout
    assert all("-c constraints.txt" in line for line in asked)
    return done.stdout, asked


pci_driver = Path("/proc/driver/nvidia/version")
without_driver = pytest.mark.skipif(pci_driver.exists(), reason="this machine has an NVIDIA driver, which counts")


@without_driver
def test_without_a_driver_the_build_for_cpus_is_taken(clone: Path, index: str) -> None:
    said, asked = core(clone, f"TORCH_CPU_INDEX={index}")
    assert f"torch: the build for CPUs (200 MB) from {index}, because there is no NVIDIA driver" in said
    assert asked[0].endswith(f"--extra-index-url {index} torch")
    assert "--extra-index-url" not in asked[1]


def test_with_a_driver_the_usual_build_is_taken(clone: Path, index: str) -> None:
    said, asked = core(clone, f"TORCH_CPU_INDEX={index}", driver="GPU 0: something")
    assert "because there is an NVIDIA driver" in said
    assert "--extra-index-url" not in asked[0]


def test_the_user_decides(clone: Path, index: str) -> None:
    said, asked = core(clone, "TORCH=cpu", f"TORCH_CPU_INDEX={index}", driver="GPU 0: something")
    assert "as asked for" in said
    assert index in asked[0]


def test_cuda_can_be_asked_for(clone: Path, index: str) -> None:
    _, asked = core(clone, "TORCH=cuda", f"TORCH_CPU_INDEX={index}")
    assert "--extra-index-url" not in asked[0]


def test_another_index_can_be_asked_for(clone: Path) -> None:
    _, asked = core(clone, "TORCH=https://index.invalid/whl/other")
    assert asked[0].endswith("--extra-index-url https://index.invalid/whl/other torch")


@without_driver
@pytest.mark.parametrize("fault", ["closed port", "no torch", "silence", "no such host"])
def test_an_index_out_of_reach_costs_seconds(clone: Path, index: str, fault: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/whl/cpu"
        if fault == "silence":
            listener.listen()  # takes connections, and never answers
        places = {"no torch": index.replace("cpu", "other"), "no such host": "https://index.invalid/whl/cpu"}
        began = time.monotonic()
        said, asked = core(clone, f"TORCH_CPU_INDEX={places.get(fault, address)}")
    assert time.monotonic() - began < 30
    assert "torch: the build that pip finds, because" in said
    assert "cannot be reached" in said
    assert "--extra-index-url" not in asked[0]


def test_an_unknown_build_is_refused(clone: Path) -> None:
    command = ["make", "-C", str(clone), ".venv/core", f"PYTHON={sys.executable}", "TORCH=gpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode
    assert "TORCH=gpu: say auto, cpu, cuda or the address" in done.stderr
    assert not (clone / ".venv" / "core").exists()
