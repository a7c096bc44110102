"""What is this path? Say what was written in the place of a file's path, what to write instead, and what is near.

A path is taken as it stands if there is something at it. Only where there is nothing does it matter what it looks
like. Web addresses and tags of prompts can be no paths, so a recipe refuses them at once.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lorabake.errors import FileError
from lorabake.likeness import MOST, nearest
from lorabake.settings import FETCHED
from lorabake.visible import and_more

MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".npz", ".lora", ".json")
"""Endings of files of weights, and of indexes."""

RECIPE_SUFFIXES = (".yaml", ".yml")
"""Endings of recipes."""

LIKE_ENDING = 0.8
"""How alike two endings are, from 0 to 1, if one is a slip of the other."""

SHOWN = 3
"""How many names a hint lists."""


MARKS = "'\"`“”„‘’«»"
"""Quotation marks, also those that word processors write."""

HUB = re.compile(
    r"(?:hf:|(?:www\.)?huggingface\.co/|hf\.co/)(?P<id>[^/]+/[^/@?#]+)(?:@[^/]+)?"
    r"(?:/(?:resolve|blob|tree)/(?P<revision>[^/?#]+))?(?:/(?P<file>[^?#]+))?(?:[?#].*)?"
)
"""Addresses of a model on Hugging Face, or of a file of it."""


@dataclass(frozen=True, slots=True)
class Writing:
    """Describe one way in which people write what is no plain path.

    `pattern` fits the whole text, and no other writing's does. `explain` says what the text is and what to write
    instead. Where `is_never_a_path`, no file can have such a path; where `is_often_a_path`, what is near comes first.
    """

    name: str
    pattern: re.Pattern[str]
    explain: Callable[[re.Match[str]], str]
    is_never_a_path: bool = False
    is_often_a_path: bool = False


DIGESTED = "{path: https://…, sha256: 64 HEX DIGITS}"
"""How a recipe gives an address of the web."""


def cache_folder() -> Path:
    """Return the folder in which lorabake keeps what it can get again: LORABAKE_CACHE, or in the user's caches."""
    if own := os.environ.get("LORABAKE_CACHE"):
        return Path(expanded(own))
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache"), "lorabake")


def hub_cache() -> Path:
    """Return the folder of models that Hugging Face's programs keep, by the variables that they obey."""
    if own := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(expanded(own)))
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")
    return Path(os.path.expandvars(expanded(home)) if home else Path(cache, "huggingface"), "hub")


def hub_address(text: str) -> str | None:
    """Write a web address of Hugging Face as hf://…; return None for any other text."""
    scheme, _, rest = text.partition(":/")
    match = HUB.fullmatch(rest.lstrip("/"))
    if match is None or scheme.lower() not in ("http", "https"):
        return None
    file = f"/{match['file']}" if match["file"] else ""
    return f"hf://{match['id']}@{match['revision']}{file}" if match["revision"] else f"hf://{match['id']}{file}"


def expanded(path: str) -> str:
    """Put the user's home folder in the place of a leading `~`; nothing else in a path has a meaning."""
    return os.path.expanduser(path)


def without_dots(path: Path) -> Path:
    """Take `..` out of a path, where the folder before it is there and is no link."""
    if ".." not in path.parts:
        return path
    folder = Path(*path.parts[: len(path.parts) - path.parts[::-1].index("..")])
    is_same = folder.is_dir() and os.path.realpath(folder) == os.path.realpath(os.path.normpath(folder))
    return Path(os.path.normpath(path)) if is_same else path


def name_of_output(path: str) -> str:
    """Return what an output is called: its file's name without the ending, or its folder's name."""
    return os.path.basename(path.rstrip("/")).removesuffix(".safetensors")


def never_a_path(text: str) -> str | None:
    """Say what a text is that can be no path, and what to write instead; None for every other text."""
    return next((words for writing, words in _read(text) if writing.is_never_a_path), None)


def no_plain_path(text: str) -> str | None:
    """Say what a text is that is hardly a path, and what to write instead; None for every other text."""
    return next((words for writing, words in _read(text) if not writing.is_often_a_path), None)


def check_folder(folder: Path, option: str) -> None:
    """Raise FileError if there is nothing where an option says that a folder is."""
    if not _is_missing(folder):
        return
    near = _alike(folder.name, _names(folder.parent, folders=True))
    hint = no_plain_path(str(folder)) or (near and f"Did you mean {folder.parent / near}?")
    raise FileError(f"{option} {folder}: no such folder", hint or "Give the folder that holds the files.")


def check_there(path: Path, written: str | None = None) -> None:
    """Raise FileError if there is nothing at a path.

    `written` is how the user wrote it; by default, as the path is. A path that the system cannot look up passes:
    whoever opens it reports why.
    """
    if _is_missing(path):
        raise FileError(*missing(path, str(path) if written is None else written))


def missing(path: Path, written: str) -> tuple[str, ...]:
    """Return the lines of an error about a path without a file: what was written, or what is near it."""
    maybe = (words for writing, words in _read(written) if writing.is_often_a_path)
    hint = no_plain_path(written) or _elsewhere(path, written) or (_near(path) if path.parent.is_dir() else None)
    hint = hint or next(maybe, None) or _near(path)
    return (f"{path}: no such file", *([hint] if hint else []))


def _is_missing(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


# -- what it looks like ------------------------------------------------------------------------------------------


def _url(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "file":
        return f"This is a web address of a file on this machine: write /{rest.removeprefix('localhost/')}"
    if scheme == "hf":
        return "This is an address of Hugging Face, and only the inputs of a recipe can have one: write a path."
    if (hub := hub_address(match[0].strip())) is not None:
        return f"This is a web address of Hugging Face: as an input of a recipe, write {hub}, and {FETCHED}."
    if scheme in ("http", "https"):
        return f"This is a web address: as an input of a recipe, write {DIGESTED}, and {FETCHED}."
    return (
        "This is an address, and lorabake fetches only hf://… and https://…: download the file, and write its path."
    )


def _tag(match: re.Match[str]) -> str:
    parts = match["parts"].split(":")
    path = f"{parts[0]}.safetensors"
    if len(parts) == 1:
        return f"This is the tag of a LoRA in a prompt: write {path}"
    written = f"{{path: {path}, strength: {parts[1]}}}"
    return f"This is the tag of a LoRA in a prompt: write {written}, or as an option {path}={parts[1]}"


def _quoted(match: re.Match[str]) -> str:
    return f"The quotation marks inside the text count as part of the path: write {match['inner']} without them."


def _spaced(match: re.Match[str]) -> str:
    return f"The path begins or ends with a space: write {match[0].strip()!r}"


def _variable(match: re.Match[str]) -> str:
    name = match["unix"] or match["braced"] or match["windows"]
    value = os.environ.get(name)
    instead = match[0].replace(match["variable"], value).replace("\\", "/") if value else None
    for_an_axis = f" For an axis, add matrix: {{{name}: [VALUE, VALUE]}} to the recipe." if match["braced"] else ""
    return (
        f"Environment variables such as {match['variable']} have no meaning here: write "
        + (instead or "the whole path, or one that begins with ~ for your home folder.")
        + for_an_axis
    )


def _drive(match: re.Match[str]) -> str:
    rest = match["rest"].replace("\\", "/").lstrip("/")
    return f"This is a path of Windows. Under WSL, write /mnt/{match['drive'].lower()}/{rest}"


def _share(match: re.Match[str]) -> str:
    return "This is a network share of Windows: write the folder in which this machine has mounted it."


def _strength(match: re.Match[str]) -> str:
    return f"A strength is a key of its own: {{path: {match['path']}, strength: {match['strength']}}}"


def _backslashes(match: re.Match[str]) -> str:
    return f"This has backslashes between folders: write {match[0].replace(chr(92), '/')}"


def _hub(match: re.Match[str]) -> str:
    address = f"hf://{match[0]}"
    if (hub_cache() / f"models--{match['owner']}--{match['name']}" / "snapshots").is_dir():
        return f"If this is the id of a model on Hugging Face, you have it: write {address}"
    return f"If this is the id of a model on Hugging Face, write {address}, and {FETCHED}."


WRITINGS = (
    Writing(
        "url", re.compile(r"\s*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+(?P<rest>.*?)\s*"), _url, is_never_a_path=True
    ),
    Writing("tag", re.compile(r"\s*<(?:lora|lyco|hypernet):(?P<parts>[^>]*)>\s*"), _tag, is_never_a_path=True),
    Writing("quoted", re.compile(rf"[{MARKS}](?P<inner>.*)[{MARKS}]"), _quoted),
    Writing("spaced", re.compile(r"(?!\s*(?:<|[A-Za-z][A-Za-z0-9+.-]+:/))(?=\s|.*\s\Z).*\S.*", re.DOTALL), _spaced),
    Writing(
        "variable",
        re.compile(
            rf"(?![{MARKS}\s]).*?"
            r"(?P<variable>\$(?P<unix>[A-Za-z_]\w*)|\$\{(?P<braced>\w+)\}|%(?P<windows>[A-Za-z_]\w*)%)"
            rf".*(?<![{MARKS}\s])"
        ),
        _variable,
    ),
    Writing("drive", re.compile(r"(?P<drive>[A-Za-z]):(?P<rest>[\\/][^%$]*)(?<!\s)"), _drive),
    Writing(
        "strength",
        re.compile(
            rf"(?P<path>(?![{MARKS}\s<])[^:%$\\]*(?:{'|'.join(map(re.escape, MODEL_SUFFIXES))}))"
            r":(?P<strength>[-+]?\d*\.?\d+)"
        ),
        _strength,
    ),
    Writing("share", re.compile(r"\\\\[^%$]*(?<!\s)"), _share),
    Writing(
        "backslashes", re.compile(rf"(?!\\\\|[A-Za-z]:|[{MARKS}\s])(?=.*\\)[^%$]*(?<![{MARKS}\s])"), _backslashes
    ),
    Writing(
        "hub",
        re.compile(
            rf"(?!.*(?:{'|'.join(map(re.escape, (*MODEL_SUFFIXES, '.yaml', '.yml')))})\Z)"
            r"(?P<owner>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)"
        ),
        _hub,
        is_often_a_path=True,
    ),
)
"""All writings, in no order: no text is of two."""


def _read(text: str) -> list[tuple[Writing, str]]:
    """Find the writing of a text, and what to say of it."""
    matches = ((writing, writing.pattern.fullmatch(text)) for writing in WRITINGS)
    return [(writing, writing.explain(match)) for writing, match in matches if match]


# -- what is near it ---------------------------------------------------------------------------------------------


def _elsewhere(path: Path, written: str) -> str | None:
    """Say that a file is where the command runs, if the path in the recipe starts from elsewhere."""
    here = Path.cwd() / expanded(written)
    if here == path or not os.path.lexists(here):
        return None
    folder = Path(str(path).removesuffix(written))
    return (
        f"The current folder has it, and a path in a recipe starts from the recipe's folder: "
        f"write {os.path.relpath(here, folder)}"
    )


def _near(path: Path) -> str | None:
    """Name what is near a missing file: in its folder, or in the deepest folder of its path that is there."""
    above, name, is_folder = path.parent, path.name, False
    while not os.path.lexists(above) and above != above.parent:
        above, name, is_folder = above.parent, above.name, True
    if not above.is_dir():
        return f"{above} is a file, not a folder."
    names = _names(above, folders=is_folder)
    if is_folder:
        told = f"{above} has no folder {name!r}"
        if close := _alike(name, names):
            return f"{told}: did you mean {close}?"
        return f"{told}: {path.name} lies in {above} itself." if (above / path.name).exists() else f"{told}."
    if cut := next((other for other in names if other.startswith(f"{name} #")), None):
        return f"The folder has {cut!r}: in YAML, what follows ' #' is a comment, so put the path in quotes."
    if close := _alike(name, names):
        return f"The folder has {close}: did you mean that?"
    folders = [] if _ending(name) else _names(above, folders=True)
    others = [*folders, *(other for other in names if other.lower().endswith(_kinds(name)))]
    return f"The folder has {and_more(others[:SHOWN], len(others))}." if others else None


def _names(folder: Path, *, folders: bool) -> list[str]:
    """List what is in a folder, or the folders in it; nothing if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            shown = (entry for entry in islice(entries, MOST) if not entry.name.startswith("."))
            return sorted(entry.name for entry in shown if not folders or entry.is_dir())
    except OSError:
        return []


def _alike(name: str, names: Iterable[str]) -> str | None:
    """Return the name that was probably meant; files of a kind that could be meant come before all others."""
    names = [*names]
    kinds = _kinds(name)
    return _closest(name, [other for other in names if _ending(other) in ("", *kinds)]) or _closest(name, names)


def _closest(name: str, names: Sequence[str]) -> str | None:
    """Return the name that is the same but for case, ending or signs, or for a slip; of several the most similar."""
    for same in (_folded, lambda text: Path(_folded(text)).stem, lambda text: re.sub(r"[\W_]+", "", _folded(text))):
        if alike := [other for other in names if same(other) == same(name)]:
            return nearest(name, alike, cutoff=0)
    stem = nearest(Path(name).stem, (Path(other).stem for other in names))
    return nearest(name, (other for other in names if Path(other).stem == stem), cutoff=0)


def _kinds(name: str) -> tuple[str, ...]:
    """Return the endings of the files that a name may stand for: its ending may have a slip in it, too."""
    ending = _ending(name)
    near = (kinds for kinds in (MODEL_SUFFIXES, RECIPE_SUFFIXES) if not ending or nearest(ending, kinds, LIKE_ENDING))
    return next(near, (ending,))


def _ending(name: str) -> str:
    """Return what a name ends in; a number behind a point, as in style-0.8, is no ending."""
    ending = Path(name).suffix.lower()
    return ending if re.search("[a-z]", ending) else ""


def _folded(text: str) -> str:
    """Return a name without what some file systems do not tell apart: case, and ways to write an accent."""
    return unicodedata.normalize("NFC", text).casefold()
