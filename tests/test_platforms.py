"""Only files that are named here know on which platform they run; on another one `plan` and `inspect` work, too."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lorabake.writing import system
from lorabake.writing.system import elsewhere as elsewhere_file
from lorabake.writing.system import posix
from tests import builders as b
from tests.test_structure import FILES, name_of

MODULES = {"ctypes", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
CALLS = {
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "copy_file_range", "fchdir", "fchmod", "fchown",
    "fork", "getegid", "geteuid", "getgid", "getuid", "lchown", "mkfifo", "posix_fadvise", "posix_fallocate", "pread",
    "preadv", "pwrite", "pwritev", "readv", "sched_getaffinity", "sendfile", "statvfs", "sysconf", "uname", "writev",
}  # fmt: skip
"""What `os` has on POSIX systems alone."""

SYSTEM = {"writing.system.posix", "tensors.system"}
"""The files of system calls: one of what writes, one of what reads."""

ASKS_FIRST = {"machine"}
"""Files that ask first whether the platform has what they use."""


def posix_only(tree: ast.AST) -> set[str]:
    """Name what a file imports or uses that POSIX systems alone have."""
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            used |= {node.module or ""} & MODULES
            used |= {alias.name for alias in node.names if node.module == "os"} & CALLS
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            used |= {node.attr} & CALLS
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("/proc/"):
            used.add("/proc")
    return used


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_files_of_system_calls_know_the_platform(path: Path) -> None:
    if name_of(path) not in SYSTEM | ASKS_FIRST:
        assert not posix_only(ast.parse(path.read_text())), "it belongs in writing/system, or in tensors/system.py"


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path) in ASKS_FIRST], ids=name_of)
def test_what_asks_first_imports_nothing_of_one_platform_with_itself(path: Path) -> None:
    tree = ast.parse(path.read_text())
    guarded = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        and any("ImportError" in ast.unparse(each.type or node) for each in node.handlers)
        for line in node.body
        for inner in ast.walk(line)
    }
    for node in ast.walk(tree):
        assert node in guarded or not isinstance(node, ast.Import) or not posix_only(node), ast.unparse(node)


def test_the_sieve_finds_what_it_looks_for() -> None:
    source = "import fcntl\nfrom os import pread\nos.O_NOFOLLOW\nopen('/proc/self/status')\nos.replace\n"
    assert posix_only(ast.parse(source)) == {"fcntl", "pread", "O_NOFOLLOW", "/proc"}


ELSEWHERE = f"""
    import os, sys
    import click, numpy, pydantic, yaml

    for name in {sorted(MODULES - {"ctypes", "posix"})}:
        sys.modules[name] = None  # as if it were not there
    for name in {sorted(CALLS - {"statvfs"})}:  # shutil.disk_usage takes that one here, and another elsewhere
        if hasattr(os, name):
            delattr(os, name)
    import lorabake.cli, lorabake.planning, lorabake.sources, lorabake.inspection

    assert "lorabake.writing.system.posix" not in sys.modules
    lorabake.cli.main()
"""


def elsewhere(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as on a platform that is not POSIX."""
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    b.recipe(folder)
    command = [sys.executable, "-c", textwrap.dedent(ELSEWHERE), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "Bake weighted LoRAs"),
        (["bake", "--help"], "Bake RECIPE into a new checkpoint"),
        (["plan", "recipe.yaml"], "out.safetensors"),
        (["inspect", "base.safetensors"], "base.safetensors"),
        (["inspect", "lora.safetensors"], "lora.safetensors"),
    ],
    ids=str,
)
def test_another_platform_plans_and_inspects(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = elsewhere(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_another_platform_says_that_it_cannot_write(tmp_path: Path) -> None:
    done = elsewhere(tmp_path, "bake", "recipe.yaml")
    assert done.returncode == 3, done.stderr
    assert "error: lorabake cannot write checkpoints on this system" in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_both_files_of_system_calls_define_the_same_functions() -> None:
    assert {name for name in system.__all__ if not callable(getattr(posix, name))} == set()
    assert {name for name in system.__all__ if getattr(elsewhere_file, name) is not elsewhere_file.refuse} == set()


WINDOWS = """
    import sys
    import lorabake.cli

    sys.platform = "win32"
    lorabake.cli.main()
"""


@pytest.mark.parametrize("command", ["plan", "bake", "verify", "inspect"])
def test_windows_is_refused_by_name(tmp_path: Path, command: str) -> None:
    call = [sys.executable, "-c", textwrap.dedent(WINDOWS), command, "recipe.yaml"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "error: lorabake does not work on Windows yet\n"
        "  In a WSL terminal it works as on Linux: wsl --install, then install lorabake there.\n"
    )
