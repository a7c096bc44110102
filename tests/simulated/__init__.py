"""Build the simulated device of `device.cpp`, and put it into any process's torch.

    PYTHONPATH=$(python -m tests.simulated) lorabake bake RECIPE        # computed on "simulated"

The folder that this prints announces a backend to torch, as those of vendors do, so each process that has it on its
path gets the device when it imports torch. `SIMULATED_MEMORY` says how much memory it has, in bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
BACKEND = Path(__file__).with_name("backend.py")


class UnavailableError(Exception):
    """Say why the device cannot be built here."""


def build() -> Path:
    """Return the folder that announces the device, built if it is not there yet.

    Raise UnavailableError without a C++ compiler, or where torch's headers do not fit it.
    """
    import torch

    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        raise UnavailableError("no C++ compiler is there")
    if os.name != "posix":
        raise UnavailableError("it needs POSIX's mmap")
    sources = SOURCE.read_bytes() + BACKEND.read_bytes() + Path(__file__).read_bytes()
    key = hashlib.sha256(torch.__version__.encode() + sources).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"lorabake-simulated-{os.getuid()}-{key}"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may want it at the same moment
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(prefix="lorabake-simulated-") as made:
                _compile(compiler, Path(torch.__file__).parent, Path(made) / "device.so")
                _announce(Path(made))
                shutil.copytree(made, f"{folder}.partial", dirs_exist_ok=True)
                os.rename(f"{folder}.partial", folder)
    return folder


def _compile(compiler: str, torch: Path, library: Path) -> None:
    include, lib = torch / "include", torch / "lib"
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    command += [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    command += [f"-L{lib}", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"it does not compile:\n{done.stderr[:2000]}")


def _announce(folder: Path) -> None:
    """Write what makes torch load the backend: a module, and a distribution whose metadata names it."""
    shutil.copyfile(BACKEND, folder / "lorabake_simulated.py")
    distribution = folder / "lorabake_simulated-1.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: lorabake-simulated\nVersion: 1\n")
    (distribution / "entry_points.txt").write_text("[torch.backends]\nsimulated = lorabake_simulated:register\n")
