"""The package's shape: who may import whom, what starts fast, and what a library must not do."""

from __future__ import annotations

import ast
import importlib
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

import lorabake

PACKAGE = Path(lorabake.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. Modules of one row do not import each other.
LAYERS = (
    ("visible", "settings"),
    ("documents",),
    ("errors", "interrupts", "likeness", "notebook"),
    ("paths",),
    ("arguments", "machine", "progress"),
    ("tensors",),
    ("remote",),
    ("codecs",),
    ("keymap",),
    ("storage",),
    ("components",),
    ("architectures", "adapters", "dialects", "configs"),
    ("recipe",),
    ("sources",),
    ("matching",),
    ("importing",),
    ("planning",),
    ("execution", "writing", "reference"),
    ("artifacts",),
    ("options", "results"),
    ("verification",),
    ("baking", "checking"),
    ("batch",),
    ("estimating", "report"),
    ("inspection", "verifying"),
    ("cli",),
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
TOP = {"__init__", "__main__"}
# Folders whose files do not know of each other, but for what all may use.
KINDS = {"kind", "effect", "dora", "shapes", "slots", "settings", "programs", "followed", "draws", "rotations"}
APART = {
    "architectures": set(),
    "components": set(),
    "dialects": set(),
    "adapters": KINDS,
    "schemes": set(),
}

# Lines beyond which nobody knows any more what a class or a module of logic is for. Tables may be of any length.
MOST_OF_A_CLASS, MOST_OF_A_MODULE = 200, 400
TABLES = {"architectures", "components"}
# What is better whole, with the reason; and what is still to be parted, which goes from here when it is.
LONGER: dict[str, str] = {}


def name_of(path: Path) -> str:
    """Return a file's dotted name below the package: tensors.dtypes."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts)


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names below lorabake that a file imports anywhere, also only for types."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("lorabake.") for alias in node.names if "lorabake." in alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            if node.module == "lorabake":
                yield from (alias.name for alias in node.names)
            elif node.module and node.module.startswith("lorabake."):
                below = node.module.removeprefix("lorabake.")
                yield from (f"{below}.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer() -> None:
    roots = {name_of(path).split(".")[0] for path in FILES}
    assert roots - TOP == LEVEL.keys(), "give it a place in LAYERS"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    own = name_of(path).split(".")[0]
    if own in TOP:
        return
    for target in imported(path):
        root = target.split(".")[0]
        if root == "__version__":
            continue
        assert root == own or LEVEL[root] < LEVEL[own], f"{own} imports {target}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in APART], ids=name_of)
def test_files_of_one_sort_do_not_know_each_other(path: Path) -> None:
    folder = path.parent.name
    siblings = {each.stem for each in path.parent.glob("*.py")} - APART[folder]
    for target in imported(path):
        parts = target.split(".")
        assert parts[0] != folder or parts[1] not in siblings, f"{name_of(path)} imports {target}"


def too_long() -> Iterator[str]:
    """Yield what has too many lines: a module of logic (matching.ledger), a class (matching.ledger.Ledger)."""
    for path in FILES:
        name, text = name_of(path), path.read_text()
        if name.split(".")[0] not in TABLES and text.count("\n") > MOST_OF_A_MODULE:
            yield name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno >= MOST_OF_A_CLASS:
                yield f"{name}.{node.name}"


def test_modules_and_classes_are_short() -> None:
    found = set(too_long())
    assert not found - LONGER.keys(), "part it by question, or say in LONGER why it is better whole"
    assert not LONGER.keys() - found, "it is short now, or has another name: take it from LONGER"


@pytest.mark.parametrize("path", [p for p in FILES if p.stat().st_size], ids=name_of)
def test_each_file_begins_with_what_it_is_for(path: Path) -> None:
    told = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert told.split("\n\n")[0].endswith((".", "?", ":", "…")), "it begins with a sentence that says what it is for"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_has_a_name_that_says_nothing(path: Path) -> None:
    words = set(name_of(path).replace(".", "_").split("_"))
    assert not words & {"util", "utils", "helper", "helpers", "common", "misc", "manager"}


OF_OPTIONS = {"settings", "recipe.options", "recipe.changes"}
"""What is about the options of the command line. Elsewhere a message reaches Python's callers, too."""


@pytest.mark.parametrize("path", [p for p in FILES if "cli" not in p.parts], ids=name_of)
def test_messages_of_the_library_name_options_by_their_settings(path: Path) -> None:
    if name_of(path) in OF_OPTIONS or path.parent.name == "importing":  # only `lorabake init` calls that
        return
    tree = ast.parse(path.read_text())
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]
    own = r"(?<![\w-])--(?!gguf|merge|to_webui)[a-z]|lorabake (?:bake|plan|verify|inspect) [A-Z-]"
    assert not [text for text in texts if re.search(own, text)], "write a Setting of settings.py in its place"


@pytest.mark.parametrize("path", [p for p in FILES if "cli" not in p.parts], ids=name_of)
def test_the_library_neither_prints_nor_exits_nor_swallows(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"print", "exit", "quit", "sys.exit", "os._exit", "SystemExit"}
            assert not called.startswith(("click.", "sys.stdout.", "sys.stderr.", "warnings.warn"))
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            inside = [inner for line in node.body for inner in ast.walk(line)]
            raises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in inside)
            passes_on = any(isinstance(inner, ast.Name) and inner.id == node.name for inner in inside)
            assert raises or passes_on or caught not in {"everything", "Exception", "BaseException"}, caught


# -- what starts without torch -----------------------------------------------------------------------------


def write_table(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write zeros as a SafeTensors file, by hand."""
    header: dict[str, object] = {}
    start = 0
    for key, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(start))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_table(tmp_path / "base.safetensors", {"fc.weight": (4, 3)})
    write_table(tmp_path / "lora.safetensors", {"fc.lora_A.weight": (2, 3), "fc.lora_B.weight": (4, 2)})
    recipe = "version: 1\nbase: base.safetensors\nloras: [lora.safetensors]\noutput: {path: out.safetensors}\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["--version"],
        ["bake", "--help"],
        ["verify", "--help"],
        ["plan", "recipe.yaml"],
        ["plan", "--json", "recipe.yaml"],
        ["inspect", "base.safetensors"],
        ["inspect", "lora.safetensors"],
        ["schema"],
    ],
    ids=" ".join,
)
def test_what_computes_nothing_does_not_load_torch(folder: Path, arguments: list[str]) -> None:
    script = f"""
import sys
import lorabake
sys.argv = ["lorabake", *{arguments}]
try:
    if {arguments}:
        from lorabake.cli import main
        main()
except SystemExit as error:
    assert not error.code, error.code
assert "torch" not in sys.modules
assert {bool(arguments)} or "pydantic" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "out.safetensors").exists()


# -- docs/architecture.md ----------------------------------------------------------------------------------

ARCHITECTURE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", sorted({*re.findall(r"`([a-z_]+(?:\.[A-Za-z_]\w*)+)`", ARCHITECTURE)} - {"base.safetensors"})
)
def test_what_the_page_on_architecture_names_is_there(name: str) -> None:
    if name.endswith(".py"):
        assert [*PACKAGE.rglob(name)], name
        return
    parts = name.split(".")
    found: object = lorabake
    for count, part in enumerate(parts, 1):
        with suppress(ModuleNotFoundError):
            importlib.import_module(".".join(["lorabake", *parts[:count]]))
        found = getattr(found, part)


def test_the_page_on_architecture_lists_every_folder_above_those_that_it_imports() -> None:
    rows = re.findall(r"^\| `(\w+)/` \|", ARCHITECTURE, re.MULTILINE)
    assert {*rows} == {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    for above, below in pairwise(rows):
        assert LEVEL[above] >= LEVEL[below], f"{above} stands above {below}, and may be imported by it"
