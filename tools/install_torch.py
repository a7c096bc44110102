"""Choose the build of torch that fits this machine, and install it.

    python tools/install_torch.py BUILD CPU_INDEX PIP [ARGUMENT ...]

On Linux, the torch on PyPI brings 4.7 GB of CUDA. Where there is no NVIDIA driver, the build for CPUs does the same,
and takes 200 MB; PyTorch has it on an index of its own. BUILD is `auto`, `cpu`, `cuda`, or the address of another of
PyTorch's indexes. The rest is the command that installs packages. The Makefile calls this.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
TIMEOUT = 5.0
"""Seconds after which an index counts as out of reach."""

PYTHONS = "torch has builds for Python 3.11 to 3.14; choose one of these with `make PYTHON=python3.12 …`"


def main(arguments: list[str]) -> int:
    """Install torch, and say which build."""
    build, cpu_index, *pip = arguments
    index, words = choose(build, cpu_index)
    print(f"torch: {words}", flush=True)
    extra = ["--extra-index-url", index] if index else []
    code = subprocess.run([*pip, *extra, "torch"], check=False).returncode
    if code:
        print(f"torch could not be installed. {PYTHONS}.", file=sys.stderr)
    return code


def choose(build: str, cpu_index: str) -> tuple[str | None, str]:
    """Return the index to ask besides the usual ones, if any, and what is taken, in words."""
    if build.startswith(("https://", "http://", "file://")):
        return build, f"the build from {build}, as asked for"
    if build == "cuda":
        return None, "PyPI's build, with CUDA on Linux (4.7 GB), as asked for"
    if build not in ("auto", "cpu"):
        sys.exit(f"TORCH={build}: say auto, cpu, cuda or the address of one of PyTorch's indexes")
    if sys.platform != "linux":
        return None, "PyPI's build, which has no CUDA on this system"
    if build == "auto" and has_nvidia_driver():
        return (
            None,
            "PyPI's build with CUDA (4.7 GB), because there is an NVIDIA driver; TORCH=cpu takes the small one",
        )
    if why := out_of_reach(cpu_index):
        return None, f"the build that pip finds, because {cpu_index} cannot be reached ({why})"
    asked = "as asked for" if build == "cpu" else "because there is no NVIDIA driver; TORCH=cuda takes the other one"
    return cpu_index, f"the build for CPUs (200 MB) from {cpu_index}, {asked}"


def has_nvidia_driver() -> bool:
    """Tell whether an NVIDIA driver is loaded: the kernel says so, or nvidia-smi lists a device."""
    if DRIVER.exists():
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def out_of_reach(index: str) -> str:
    """Say why an index does not answer within a few seconds; empty if it does.

    pip checks certificates with its own store, so that a certificate that is unknown here counts as an answer.
    """
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=TIMEOUT):
            return ""
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return "" if isinstance(reason, ssl.SSLCertVerificationError) else str(reason)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
