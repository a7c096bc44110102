"""Turn the system's refusals into lorabake's errors: memory, threads, open files, disks, reading, writing.

Where another recipe, path or option is needed, the user's input is at fault (exit code 2). Where the same command
works once the machine is put right, the machine is (exit code 3): a disk that is full, failing or read-only, a file
without permission, a lost server, a limit that is reached.
"""

from __future__ import annotations

import errno
import mmap
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from lorabake import __version__
from lorabake.errors import FileError, LorabakeError, SurroundingsError, TargetError, lines_of
from lorabake.settings import WORKERS
from lorabake.visible import visible

OF_THE_MACHINE = {
    errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ECONNRESET,
    errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.EACCES, errno.EPERM, errno.EROFS,
} | {getattr(errno, name) for name in ("EREMOTEIO", "ESHUTDOWN", "EUCLEAN") if hasattr(errno, name)}  # fmt: skip
"""Errors that are not the path's fault: on a healthy machine, the same path would work."""

ADVICE = {
    errno.ESTALE: "A network file system lost the file: run it again.",
    errno.EMFILE: "Raise the limit: ulimit -n 65536.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EROFS: "Mount the disk for writing, or name another place.",
    errno.EFBIG: "Raise the limit of the size of files (ulimit -f), or choose a file system that takes such files.",
}

NO_MEMORY = ("allocate memory", "failed to map segment", "not enough memory", "out of memory", "std::bad_alloc")
"""How libraries word a lack of memory in errors of other types."""

NO_THREAD = ("can't start new thread", "pthread_create")

BESIDE_LIBRARY = 256 << 20
"""Bytes of address space that a bake needs, not counting libraries and computing threads."""

BY_THREAD = 72 << 20
"""Bytes of address space that a thread needs: its stack and the C library's arena."""

ALMOST_NONE = 32 << 20
"""Bytes of free address space that are too few for any import or buffer."""


def why(error: OSError | ValueError) -> str:
    """Word the system's reason for not opening a path; the result follows the path and a colon."""
    if isinstance(error, FileNotFoundError):
        is_link = error.filename is not None and os.path.islink(error.filename)
        return "is a link to nothing\nRemove it, or fetch the file again." if is_link else "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"cannot be read: {getattr(error, 'strerror', None) or visible(str(error))}{_advice(error)}"


def unreadable(path: Path | int, error: OSError | ValueError) -> LorabakeError:
    """Word a failure to read an input: the file's, or the machine's."""
    is_machine = isinstance(error, OSError) and error.errno in OF_THE_MACHINE
    return (SurroundingsError if is_machine else FileError)(*lines_of(f"{path}: ", why(error)))


def unwritable(path: Path, error: OSError) -> LorabakeError:
    """Word a failure to write an output: the path's, or the machine's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SurroundingsError(f"{path}: the disk is full; the target is what it was")
    if error.errno == errno.ELOOP:
        return TargetError(f"{path}: is a symbolic link, or a loop of them; choose another output")
    if (taken := next((parent for parent in path.parents if parent.is_file()), None)) is not None:
        return TargetError(f"{path}: cannot write there: {taken} is a file, not a folder", "Choose another output.")
    is_machine = error.errno in OF_THE_MACHINE | {errno.EFBIG}
    words = f"{path}: cannot write there: {error.strerror or error}{_advice(error)}"
    return (SurroundingsError if is_machine else TargetError)(*lines_of("", words))


def exhausted(error: BaseException) -> SurroundingsError | None:
    """Word an error of any type that means too little memory or too few threads; return None for other errors."""
    if isinstance(error, LorabakeError) or not isinstance(error, Exception):
        return None
    texts = [str(cause).lower() for cause in _chain(error)]
    is_memory = any(isinstance(cause, MemoryError) for cause in _chain(error))
    is_memory |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    is_unclear = isinstance(error, ImportError | RuntimeError | SystemError | OSError)
    is_memory |= is_unclear and any(words in text for text in texts for words in NO_MEMORY)
    left = _address_space()
    if is_memory or (is_unclear and left is not None and left < ALMOST_NONE):
        return SurroundingsError(
            f"out of memory; use fewer workers: {WORKERS}", "Or allow more: ulimit -v, a container's limit."
        )
    if is_unclear and any(words in text for text in texts for words in NO_THREAD):
        return SurroundingsError(
            f"no thread can be started; use fewer workers: {WORKERS}", "Or allow more: ulimit -u."
        )
    return None


@contextmanager
def worded() -> Iterator[None]:
    """Turn errors that mean too little memory or too few threads into SurroundingsError."""
    try:
        yield
    except Exception as error:
        if (told := exhausted(error)) is None:
            raise
        raise told from error


def check_room_for(library: str, threads: int) -> None:
    """Raise SurroundingsError if the free address space is too small for a library and so many threads.

    An import that runs out of memory half-way ends in all sorts of errors, or the C library ends the process.
    """
    left = _address_space()
    if left is None or (spec := find_spec(library)) is None or spec.origin is None:
        return
    needed = (
        BESIDE_LIBRARY
        + threads * BY_THREAD
        + sum(path.stat().st_size for path in Path(spec.origin).parent.glob("lib/*.so*"))
    )
    if left < needed:
        shown = f"{left / 1e6:.0f} MB of address space are left, and {library} needs about {needed / 1e6:.0f} MB"
        raise SurroundingsError(f"out of memory: {shown}", "Allow more: ulimit -v.")


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files as far as allowed, if it is too low for `count` more."""
    try:
        import resource
    except ImportError:  # the system has no such limits
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + FILES_BESIDE
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    for most in ((wanted, max(wanted, hard)), (min(wanted, hard), hard)):  # only root may raise the hard limit
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, most)
            return


def open_files_allowed() -> int:
    """Return how many inputs this process may keep open at once."""
    allowed = _limit("RLIMIT_NOFILE")
    return 1 << 20 if allowed is None else max((allowed - FILES_BESIDE) // 2, 2)


FILES_BESIDE = 64
"""Reserve of open files for libraries, pipes and what torch opens."""


def _advice(error: OSError | ValueError) -> str:
    advice = ADVICE.get(error.errno or 0) if isinstance(error, OSError) else None
    return f"\n{advice}" if advice else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and all(following is not known for known in seen):
        seen.append(following)
        yield following
        following = following.__cause__ or following.__context__


def folder_above(path: Path) -> Path:
    """Return the nearest folder above a path that is there: it is on the disk that a new file would go to."""
    return next(folder for folder in (path.parent, *path.parents) if folder.exists())


GARBAGE = 500_000
"""How many new objects trigger Python's garbage collection in a process of lorabake's; else 700 to 2,000 do."""


def in_ci() -> bool:
    """Tell whether a CI service runs this, as they all say in the environment."""
    return os.environ.get("CI", "").lower() in ("true", "1")


def default_workers() -> int:
    """Count the cores this process may use, eight at most."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)


def process_space() -> str:
    """Name what numbers this process: the boot of this system, and the space of process numbers; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def process_began(process: int) -> str:
    """Return when a process of this machine began, in the system's ticks; "" where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def anonymous_memory() -> int | None:
    """Return this process's anonymous memory in bytes; None if the system does not tell."""
    if sys.platform != "linux":
        return None
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return None


def _address_space() -> int | None:
    """Return how many bytes of address space this process may still use; None without a limit."""
    limit = _limit("RLIMIT_AS") if sys.platform == "linux" else None
    if limit is None:
        return None
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return limit - pages * mmap.PAGESIZE
    return None


def _limit(name: str) -> int | None:
    """Return the system's limit on a resource of this process; None without a limit."""
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


COMPUTING = ("torch", "numpy")
"""Packages whose versions matter wherever tensors are computed."""


def versions(packages: Iterable[str] = COMPUTING) -> dict[str, str]:
    """Return the versions of lorabake, of Python, and of those packages that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    told = {"lorabake": __version__, "Python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):  # one that is on the path without being installed
            told[package] = version(package)
    return told
