"""Every example in README.md and docs/ is run or checked, and every link leads somewhere.

| block     | what is done with it                                                                              |
|-----------|---------------------------------------------------------------------------------------------------|
| `console` | its commands are run, and print what the page shows                                               |
| `python`  | it is run, in the same folder and the same order                                                  |
| `yaml`    | a recipe or a part of one is parsed, and planned if its inputs ship; a CI file's commands checked |
| `sh`      | each command exists, with these options, targets, files and extras                                |
| `json`    | it is parsed                                                                                      |
| `text`    | a drawing or a message: on the pages named here only                                              |
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

from lorabake import plan
from lorabake.cli import lorabake
from lorabake.recipe import recipes_of
from lorabake.recipe.values import read_values

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
LINKED = (*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), ROOT / "benchmarks" / "README.md")
REPOSITORY = "https://github.com/lorabake/lorabake"
RAW = "https://raw.githubusercontent.com/lorabake/lorabake/main/"

TEXT_PAGES = {"architecture.md", "devices.md"}
MARKED_PAGES = {"extending.md"}
"""Pages whose blocks bear marks that tests/test_readme.py follows."""

COMPLETED = {"version": "1", "base": "base.safetensors", "output": "{path: out.safetensors}"}
"""What a part of a recipe lacks."""

PREPARED = {"kinds.md": ("stories260K", "base")}
"""Page -> a model among the recipes, and the name that the page's examples have for it."""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: its page, its line and its language."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    ]


BLOCKS = [block for page in PAGES if page.name not in MARKED_PAGES for block in blocks_of(page)]


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_every_block_is_checked() -> None:
    for block in BLOCKS:
        known = {"console", "python", "yaml", "sh", "json", *(["text"] if block.page.name in TEXT_PAGES else [])}
        assert block.language in known, f"{block}: no test knows a block of this language"
    for page in MARKED_PAGES:
        text = (DOCS / page).read_text(encoding="utf-8")
        assert len(re.findall(r"^<!-- .* -->\n```", text, re.MULTILINE)) == len(blocks_of(DOCS / page))


# -- what is run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def terminal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("terminal", DOCS / "terminal.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fresh(terminal: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes and their inputs, as a reader has it."""
    path = tmp_path_factory.mktemp("pages") / "fresh"
    terminal.prepare(path)
    return path.resolve()


def run_python(block: Block, folder: Path) -> None:
    if "transformers" in block.text:
        pytest.importorskip("transformers")
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}: {done.stderr}"


RUN_PAGES = [page for page in PAGES if any(b.page == page and b.language in ("console", "python") for b in BLOCKS)]


@pytest.mark.skipif(os.name == "nt", reason="the transcripts are a POSIX shell's")
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_examples_run(page: Path, terminal: ModuleType, fresh: Path) -> None:
    folder = shutil.copytree(fresh, fresh.with_name(page.stem))
    if page.name in PREPARED:
        model, name = PREPARED[page.name]
        (folder / name).symlink_to(folder / "recipes" / model)
    for block in blocks_of(page):
        if block.language == "console":
            told = terminal.transcript(block.text, folder)
            assert terminal.mask(told) == terminal.mask(block.text), f"{block}: run python docs/terminal.py"
        elif block.language == "python":
            run_python(block, folder)


# -- recipes and CI files ----------------------------------------------------------------------------


def is_ci(document: object) -> bool:
    if not isinstance(document, dict):
        return False
    return "jobs" in document or any(isinstance(value, dict) and "script" in value for value in document.values())


def texts_of(value: object) -> Iterator[str]:
    """Yield the texts of a CI file that a shell runs."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key in ("run", "script"):
                yield from [below] if isinstance(below, str) else below
            else:
                yield from texts_of(below)
    elif isinstance(value, list):
        for below in value:
            yield from texts_of(below)


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_right(block: Block, fresh: Path) -> None:
    document = yaml.safe_load(block.text)
    if "repos" in document:  # of pre-commit: tests/test_check.py knows the hooks
        assert {hook["id"] for repo in document["repos"] for hook in repo["hooks"]} <= HOOKS
        return
    if "apiVersion" in document:  # of Kubernetes: tests/batch/test_scale_page.py runs its command
        return
    if is_ci(document):
        for text in texts_of(document):
            check_shell(text, block)
        return
    text = block.text + "".join(f"{key}: {value}\n" for key, value in COMPLETED.items() if key not in document)
    for recipe in recipes_of(read_values(text, str(block)), fresh / "recipes", None, text):
        if all(source.address is None and recipe.locate(source).exists() for source in recipe.inputs):
            assert all(ledger.is_balanced for ledger in plan(recipe).ledgers)


def test_recipes_are_planned(fresh: Path) -> None:
    """Most recipes on the page of recipes are for inputs that ship."""
    named = [yaml.safe_load(block.text)["base"] for block in of("yaml") if block.page.name == "recipes.md"]
    assert sum(isinstance(base, str) and (fresh / "recipes" / base).exists() for base in named) >= 5


def test_json_is_right() -> None:
    for block in of("json"):
        json.loads(block.text)


# -- commands ----------------------------------------------------------------------------------------

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
HOOKS = {hook["id"] for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))}
OTHERS = {
    "ray",
    "jq",
    "sudo",
    "cd",
    "source",
    "export",
    "mkdir",
    "echo",
    "sha256sum",
    "cat",
    "eval",
    "openssl",
    "model_signing",
    "set",
    "sbatch",
    "scontrol",
}
"""Commands that are not lorabake's: nothing is checked of them."""


def check_shell(text: str, block: Block) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||[;|]", re.sub(r"(^| )#.*", "", line)):
            if command := part.strip().removeprefix("$ "):
                check_command(command, block)


def check_command(command: str, block: Block) -> None:
    """Check one command of a shell, without running it."""
    for inner in re.findall(r"\$\(([^)]*)\)", command):
        check_command(inner, block)
    redirected = r"""("[^"$]*"|'[^']*')|[0-9]?>>? *\S+|\$\([^)]*\)"""  # a tag in quotes has a > of its own
    words = shlex.split(re.sub(redirected, lambda match: match[1] or "", command))
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, *arguments = words
    match program:
        case "lorabake":
            check_lorabake(arguments, block)
        case "make":
            named = {word for word in arguments if "=" not in word}
            assert named, f"{block}: no target: {command}"
            assert named <= TARGETS, f"{block}: no such target: {command}"
        case "python" | "python3":
            check_python(arguments, block)
        case "pip":
            check_pip(arguments, block)
        case "git":
            urls = {word for word in arguments if "://" in word}
            assert arguments[0] in {"clone", "pull"}, f"{block}: {command}"
            assert urls <= {REPOSITORY}, f"{block}: {command}"
        case _:
            assert program in OTHERS, f"{block}: no test knows the command {program!r}"


def check_lorabake(arguments: list[str], block: Block) -> None:
    name, *rest = arguments
    if name == "--version":
        return
    command = lorabake.get_command(click.Context(lorabake), name)
    assert command is not None, f"{block}: no command {name}"
    try:
        command.make_context(name, [word for word in rest if word != "--help"])
    except click.exceptions.MissingParameter:
        assert not rest or "--help" in rest, f"{block}: lorabake {shlex.join(arguments)}"
    except click.ClickException as error:
        pytest.fail(f"{block}: lorabake {shlex.join(arguments)}: {error.format_message()}")


def check_python(arguments: list[str], block: Block) -> None:
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file(), f"{block}: no such script: {arguments[0]}"
    elif arguments[1] not in ("venv", "pip"):
        path = ROOT.joinpath(*arguments[1].split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{block}: {arguments[1]}"


def check_pip(arguments: list[str], block: Block) -> None:
    assert arguments[0] == "install", f"{block}: pip {arguments[0]}"
    for option, word in itertools.pairwise(arguments):
        if option == "-c":
            assert (ROOT / word.removeprefix("lorabake/")).is_file(), f"{block}: no such file: {word}"
    for word in arguments:
        if extras := re.fullmatch(r"(?:\.|\./lorabake|lorabake.*)\[([a-z,]+)\](?: @ .*)?", word):
            assert {*extras[1].split(",")} <= EXTRAS.keys(), f"{block}: no such extra: {word}"


@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_commands_exist(block: Block) -> None:
    check_shell(block.text, block)


COMMAND = re.compile(r"(lorabake [a-z-]|make [a-zA-Z]|pip install \S*['.]|python recipes/)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    """Every `lorabake …`, `make …` and `pip install …` in a sentence or a table is a command."""
    prose = re.sub(r"^```.*\n(?:.*\n)*?```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    place = Block(page, 0, "", "")
    if page.name in MARKED_PAGES:
        return
    for span in re.findall(r"`([^`]+)`", prose):
        command = " ".join(span.split())
        if (
            re.match(r"(lorabake [a-z-]|make [a-zA-Z]|pip install \S*['.]|python recipes/)", command)
            and "…" not in command
        ):
            check_shell(command, place)


def test_options_exist() -> None:
    """Every `--option` on the page of commands belongs to a command."""
    known = {"--help", "--version"}
    for name in lorabake.list_commands(click.Context(lorabake)):
        command = lorabake.get_command(click.Context(lorabake), name)
        assert command is not None
        known |= {word for option in command.params for word in (*option.opts, *option.secondary_opts)}
    assert {*re.findall(r"`(--[a-z-]+)", (DOCS / "commands.md").read_text(encoding="utf-8"))} <= known


def test_every_command_is_shown() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")
    for name in lorabake.list_commands(click.Context(lorabake)):
        assert f"## `lorabake {name}`" in text


# -- links -------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """List the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(RAW):
            assert (ROOT / link.removeprefix(RAW)).is_file(), link
        elif not re.match(r"https?:", link):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_found_from_the_readme() -> None:
    found, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        found.add(page)
        links = re.findall(r"\]\(([^):#\s]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        ahead += {(page.parent / link).resolve() for link in links} - found
    assert {*DOCS.glob("*.md")} <= found
