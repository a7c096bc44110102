"""What to do about a test that was skipped: its reason, and for each reason what makes it run."""

from __future__ import annotations

import re

import pytest

NOTHING = "there is nothing to do"

ADVICE = (
    (r"could not import 'atheris'",
     "pip install atheris, which has builds for some versions of Python only; make torture tries it"),
    (r"could not import '(gguf|jsonschema|pywt|ray|setuptools)",
     "make test installs it, or: pip install -e '.[test]'"),
    (r"could not import 'resource'", "run it on Linux, or in WSL"),
    (r"could not import|(transformers 5|huggingface_hub) is not installed",
     "make test installs it, or: pip install -e '.[test,oracle]'"),
    (r"lorabake\[verify\] is missing|^no (transformers|diffusers)$",
     "make test installs it, or: pip install -e '.[verify]'"),
    (r"no such program: openssl", "install it: apt install openssl"),
    (r"no such program: mkfs", "install it: apt install btrfs-progs xfsprogs"),
    (r"C compiler|no simulated device", "install a compiler: apt install build-essential"),
    (r"root may (read|write)", "run the tests as another user than root"),
    (r"no second disk", "run it on Linux, with a --basetemp that is not in /dev/shm"),
    (r"only root|cannot mount", "run the tests as root where root may mount: docker run --privileged …"),
    (r"no CUDA device", "run TORCH=cuda make test on a machine with an NVIDIA GPU"),
    (r"accelerator|NVIDIA driver, which counts", f"it runs where there is no GPU; {NOTHING}"),
    (r"/proc/|/dev/full|needs fork|are forked|POSIX|needs Linux|this system (has no|does not tell)|no such names",
     "run it on Linux, or in WSL"),
    (r"^no such files$", f"such files do not exist; {NOTHING}"),
    (r"shared|^no such folder$", f"these LoRAs belong to their makers, so they are not in the repository; {NOTHING}"),
    (r"this (PEFT|diffusers)", "install the versions in constraints.txt: make test does"),
)  # fmt: skip
"""Patterns of reasons, and what makes such a test run."""


def advice_for(reason: str) -> str:
    """Say what makes a test run that was skipped for this reason; empty if nobody wrote it down."""
    return next((advice for pattern, advice in ADVICE if re.search(pattern, reason)), "")


def advise(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Add to the reason of a skipped test what to do about it."""
    if report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if advice := advice_for(reason.removeprefix("Skipped: ")):
            report.longrepr = (path, line, f"{reason} - to run it: {advice}")
