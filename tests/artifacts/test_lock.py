"""The lock: what it pins, that it reads as it was written, and what it says where it does not fit."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lorabake
from lorabake.artifacts.digests import FileDigest, folder_sha256
from lorabake.artifacts.inputs import BESIDE, WHOLE, lock_of
from lorabake.artifacts.lock import Lock, LockedInput, LockedOutput
from lorabake.artifacts.locking import check, lock
from lorabake.artifacts.reading import parse_lock, read_lock
from lorabake.errors import FileError, LockError, RecipeError
from lorabake.settings import as_options
from tests import builders as b

ZEROS = "0" * 64


@pytest.fixture(autouse=True)
def command_line(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, and messages as the command line words them."""
    monkeypatch.delenv("LORABAKE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    with as_options():
        yield


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a single file, a LoRA beside its configuration, and a PEFT folder."""
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.sd1_lora(tmp_path / "other.safetensors", seed=7)
    monkeypatch.chdir(tmp_path)
    return b.recipe(tmp_path, loras=["lora.safetensors", {"path": "other.safetensors", "strength": 0.5}])


def folder_recipe(folder: Path) -> Path:
    b.sd1_folder(folder / "base")
    b.sd1_lora(folder / "lora.safetensors")
    return b.recipe(folder, base="base", output={"path": "out"})


# -- what it pins ----------------------------------------------------------------------------------------


def test_a_lock_pins_every_input(recipe: Path) -> None:
    locked = lock(recipe)
    assert locked.is_changed
    assert locked.path == recipe.with_name("recipe.lock.yaml")
    assert locked.lock == read_lock(recipe)
    assert [each.path for each in locked.lock.inputs] == ["base.safetensors", "lora.safetensors", "other.safetensors"]
    for each in locked.lock.inputs:
        path = recipe.with_name(each.path)
        assert (each.size, each.sha256) == (path.stat().st_size, b.sha256(path))
        assert each.family == "Stable Diffusion 1.x"
    assert [each.kinds for each in locked.lock.inputs] == [(), ("LoRA",), ("LoRA",)]
    assert not lock(recipe).is_changed
    assert check(recipe) == ()


def test_a_folder_is_pinned_by_its_files(tmp_path: Path) -> None:
    recipe = folder_recipe(tmp_path)
    (tmp_path / "base" / ".hidden").write_text("nothing")
    (tmp_path / "base" / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another variant")
    base = lock(recipe).lock.inputs[0]
    names = {
        path.relative_to(tmp_path / "base").as_posix() for path in (tmp_path / "base").rglob("*") if path.is_file()
    }
    assert base.files.keys() == {name for name in names if "fp16" not in name and "hidden" not in name}
    assert "model_index.json" in base.files
    assert base.sha256 == folder_sha256(base.files.values())
    assert all(file.sha256 == b.sha256(tmp_path / "base" / name) for name, file in base.files.items())


def test_the_recipe_and_its_lock_are_no_inputs(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path)
    b.sd1_lora(tmp_path / ".lora.safetensors")
    recipe = b.recipe(tmp_path, base=".", loras=[".lora.safetensors"], output={"path": "../out"})
    assert not {"recipe.yaml", "recipe.lock.yaml"} & lock(recipe).lock.inputs[0].files.keys()
    assert check(recipe) == ()


def test_what_lies_beside_a_file_is_pinned_with_it(tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    b.peft(tmp_path / "made", {"model.layers.0.self_attn.q_proj": b.lora((8, 8), rank=4)}, r=4, lora_alpha=8)
    recipe = b.recipe(tmp_path, base="base", loras=["made/adapter_model.safetensors"], output={"path": "out"})
    entry = lock(recipe).lock.inputs[1]
    assert entry.files.keys() == {WHOLE, BESIDE + "adapter_config.json"}
    assert entry.sha256 == b.sha256(tmp_path / "made" / "adapter_model.safetensors")
    config = tmp_path / "made" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_alpha": 16}))
    (stale,) = check(recipe)
    assert "adapter_config.json beside it" in stale.what


def test_the_small_files_that_decide_something_are_pinned(recipe: Path) -> None:
    """Whatever planning reads beside the weights is an input, also where a base is one file."""
    recipe.with_name("config.json").write_text("{}")
    read = {path.name for path in lock(recipe).plans[0].sources.evidence.read}
    assert "config.json" in read
    pinned = {name for each in read_lock(recipe).inputs for name in each.files}
    assert {BESIDE + name for name in read} <= pinned
    recipe.with_name("config.json").write_text("{ }")
    assert [stale.what for stale in check(recipe)] == [
        "base.safetensors: config.json beside it is another file than the lock says"
    ]


def test_an_input_that_is_written_twice_has_one_entry(recipe: Path) -> None:
    twice = b.recipe(recipe.parent, loras=["lora.safetensors", "lora.safetensors", "./lora.safetensors"])
    assert [each.path for each in lock(twice).lock.inputs] == [
        "base.safetensors",
        "lora.safetensors",
        "./lora.safetensors",
    ]
    assert check(twice) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("portrait.yaml", "portrait.lock.yaml"),
        ("portrait.yml", "portrait.lock.yml"),
        ("a.b.yaml", "a.b.lock.yaml"),
        ("recipe", "recipe.lock.yaml"),
        ("recipe.txt", "recipe.txt.lock.yaml"),
    ],
)
def test_each_recipe_has_a_lock_of_its_own(name: str, expected: str) -> None:
    assert lock_of(Path("x") / name) == Path("x") / expected


def test_a_recipe_that_states_another_digest_gets_no_lock(recipe: Path) -> None:
    stated = b.recipe(recipe.parent, base={"path": "base.safetensors", "sha256": ZEROS})
    with pytest.raises(FileError, match=rf"recipe.yaml:3:9: base.safetensors: its SHA-256 is .*states {ZEROS}"):
        lock(stated)
    assert not lock_of(stated).exists()


def test_a_recipe_without_a_file_gets_no_lock(recipe: Path) -> None:
    made = lorabake.plan(base="base.safetensors", loras=["lora.safetensors"], output="out.safetensors")
    with pytest.raises(RecipeError, match="this recipe has none"):
        lock(made.sources.recipe)


# -- stale -----------------------------------------------------------------------------------------------


def changed(path: Path) -> None:
    b.sd1_lora(path, seed=99)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed, "recipe.yaml:4:3: lora.safetensors is another file than the lock says"),
        (lambda path: b.save(path.with_name("base.safetensors"), b.sd1(extras=True)), "recipe.yaml:2:7: base"),
    ],
)
def test_another_file_is_told_with_its_line_both_digests_and_what_mends_it(
    recipe: Path, change: Callable[[Path], None], expected: str
) -> None:
    before = lock(recipe).lock
    change(recipe.with_name("lora.safetensors"))
    (stale,) = check(recipe)
    first, was, now, mend = stale.lines
    assert first.startswith(expected)
    entry = before.input(stale.path)
    assert entry is not None
    assert entry.sha256 in was
    assert b.sha256(recipe.with_name(stale.path)) in now
    assert mend == f"  If this is meant: lorabake lock --update {stale.path} recipe.yaml"
    lock(recipe, update=[stale.path])
    assert check(recipe) == ()


def test_inputs_that_came_and_went_are_told(recipe: Path) -> None:
    lock(recipe)
    b.sd1_lora(recipe.with_name("new.safetensors"), seed=3)
    b.recipe(recipe.parent, loras=["lora.safetensors", "new.safetensors"])
    came, went = check(recipe)
    assert came.lines == (
        "recipe.yaml:5:3: new.safetensors is not in the lock",
        "  If this is meant: lorabake lock recipe.yaml",
    )
    assert went.lines[0] == "recipe.lock.yaml: the lock has other.safetensors, which the recipe no longer names"


@pytest.mark.parametrize("change", ["came", "went", "changed"])
def test_files_of_a_folder_that_came_or_went_are_told(tmp_path: Path, change: str) -> None:
    recipe = folder_recipe(tmp_path)
    lock(recipe)
    file = tmp_path / "base" / "unet" / "config.json"
    if change == "came":
        file.with_name("notes.txt").write_text("new")
    elif change == "went":
        file.unlink()
    else:
        file.write_text(file.read_text() + " ")
    (stale,) = check(recipe)
    words = {
        "came": "unet/notes.txt is new",
        "went": "unet/config.json has gone",
        "changed": "unet/config.json is another file than the lock says",
    }
    assert stale.what == f"base: {words[change]}"
    lock(recipe, update=["base"])
    assert check(recipe) == ()


def test_settings_and_versions_make_nothing_stale(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lock(recipe).lock
    monkeypatch.setattr("lorabake.__version__", "99.0.0")
    monkeypatch.setattr("lorabake.artifacts.locking.__version__", "99.0.0")
    for entry in before.inputs:
        assert check(recipe) == (), entry.path
    b.recipe(
        recipe.parent,
        loras=[{"path": "other.safetensors", "strength": 2}, {"path": "lora.safetensors", "blocks": {"*": 0.5}}],
        output={"path": "elsewhere.safetensors", "dtype": "bfloat16"},
    )
    assert check(recipe) == ()


def test_touched_files_are_not_stale(recipe: Path) -> None:
    lock(recipe)
    for path in recipe.parent.glob("*.safetensors"):
        os.utime(path, ns=(1, 1))
    assert check(recipe) == ()


def test_an_update_renews_what_it_names_and_nothing_else(recipe: Path) -> None:
    before = lock(recipe).lock
    for name in ("lora.safetensors", "other.safetensors"):
        b.sd1_lora(recipe.with_name(name), seed=50)
    after = lock(recipe, update=["lora.safetensors"]).lock
    assert after.inputs[0] == before.inputs[0]
    assert after.inputs[1] != before.inputs[1]
    assert after.inputs[2] == before.inputs[2]
    assert [stale.path for stale in check(recipe)] == ["other.safetensors"]
    with pytest.raises(
        LockError, match=r"lora.safetensor: is no input of recipe.yaml; did you mean lora.safetensors\?"
    ):
        lock(recipe, update=["lora.safetensor"])


# -- reading and writing ---------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
DIGESTS = st.one_of(
    st.text("0123456789abcdef", min_size=64, max_size=64), st.text("0123456789e", min_size=64, max_size=64)
)
SIZES = st.integers(0, 2**63)


@st.composite
def locked_inputs(draw: st.DrawFn) -> LockedInput:
    is_folder = draw(st.booleans())
    own = draw(st.lists(TEXTS, min_size=1, max_size=3, unique=True)) if is_folder else [WHOLE]
    own = [name for name in own if name != WHOLE and not name.startswith(BESIDE)] or ["x"] if is_folder else own
    beside = [BESIDE + name for name in draw(st.lists(TEXTS, max_size=2, unique=True))]
    return LockedInput(
        draw(TEXTS),
        {name: FileDigest(name, draw(SIZES), draw(DIGESTS)) for name in (*own, *beside)},
        draw(st.none() | TEXTS),
        draw(st.none() | TEXTS),
        draw(st.none() | TEXTS),
        tuple(draw(st.lists(TEXTS, max_size=2))),
    )


@st.composite
def locks(draw: st.DrawFn) -> Lock:
    inputs = draw(st.lists(locked_inputs(), max_size=3, unique_by=lambda each: each.path))
    outputs = st.builds(LockedOutput, DIGESTS, TEXTS, st.none() | TEXTS, TEXTS)
    return Lock(draw(DIGESTS), tuple(inputs), tuple(draw(st.lists(outputs, max_size=2))))


@settings(max_examples=40)
@given(locks(), st.text(min_size=1, max_size=5))
def test_any_lock_reads_as_it_was_written(made: Lock, name: str) -> None:
    assert parse_lock(made.text(Path(name)), Path("recipe.yaml")) == made


@pytest.mark.parametrize(
    "text", ["yes", "null", "1", "0x1", "1e3", "~", "- a", "a: b", "#", "'", '"', " a ", "ä", "\u202e"]
)
def test_a_path_that_yaml_would_take_for_something_else_reads_as_it_was(text: str) -> None:
    made = Lock(ZEROS, (LockedInput(text, {WHOLE: FileDigest(WHOLE, 1, ZEROS)}),))
    assert parse_lock(made.text(Path("recipe.yaml")), Path("recipe.yaml")) == made


def good() -> str:
    files = {name: FileDigest(name, 1, hashlib.sha256(name.encode()).hexdigest()) for name in ("a.json", "b.json")}
    entry = LockedInput("base", files, family="x", kinds=("LoRA",))
    return Lock(ZEROS, (entry,), (LockedOutput(ZEROS, "0.1.0", "2.6.0", "cpu"),)).text(Path("recipe.yaml"))


ANEW = "A lock is not made by hand. Make it anew: lorabake lock recipe.yaml"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 1", "version: 2", "recipe.lock.yaml:2:1: the lock has version 2, and this lorabake reads 1"),
        ("version: 1", "version: one", ":2:1: the version of a lock is 1, found the text 'one'"),
        ("version: 1\n", "", ": the key version is missing"),
        ("inputs:", "input:", ": a lock has no key 'input' here"),
        ("  size: 2\n", "", ":5:3: the key size is missing"),
        ("  size: 2", "  size: 3", ":6:3: inputs.0.size: is not the sum of the sizes of its files"),
        ("  size: 2", "  size: -2", "inputs.0.size: is to be a number of bytes, found the number -2"),
        ("  size: 2", "  size: true", "inputs.0.size: is to be a number of bytes, found true"),
        ("  family: x", "  familie: x", ":8:3: a lock has no key 'familie' here"),
        ("  family: x", "  family: 3", "inputs.0.family: is to be a text, found the number 3"),
        ("kinds: [LoRA]", "kinds: LoRA", "inputs.0.kinds: is to be a list, found the text 'LoRA'"),
        ("b.json", "c.json", ":7:3: inputs.0.sha256: is not the digest of the files below it"),
        ("b.json", "a.json", "inputs.0.files.1.name: 'a.json' has an entry already"),
        (f'recipe: "{ZEROS}"', "recipe: abc", "recipe: is to be a SHA-256 of 64 hexadecimal digits, found the text"),
        ("- path: base", "- path: base\n  path: base", "duplicate key 'path'"),
        ("- path: base", "- path: !!str base", "the tag !!str is not allowed"),
        ("inputs:", "inputs: [", "recipe.lock.yaml:"),
        ("inputs:", "outputs:", "recipe.lock.yaml:"),
    ],
)
def test_a_lock_that_was_edited_is_told_with_its_line(old: str, new: str, expected: str) -> None:
    assert old in good()
    with pytest.raises(LockError) as caught:
        parse_lock(good().replace(old, new, 1), Path("recipe.yaml"))
    assert expected in caught.value.lines[0]
    assert caught.value.lines[1:] in ((ANEW,), ("A newer lorabake made it: install that one, or one that is newer.",))


@pytest.mark.parametrize("mark", ["<<<<<<< HEAD", "=======", ">>>>>>> other", "||||||| base"])
def test_marks_of_a_conflict_are_told(mark: str) -> None:
    text = good().replace("inputs:\n", f"inputs:\n{mark}\n")
    with pytest.raises(LockError) as caught:
        parse_lock(text, Path("recipe.yaml"))
    assert caught.value.lines == (
        f"recipe.lock.yaml:5: two versions of the lock meet here, and nobody has settled it: {mark}",
        "Settle the recipe first. Then make the lock anew: lorabake lock recipe.yaml",
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            None,
            ("recipe.yaml: has no lock recipe.lock.yaml", "Make it, and keep it beside the recipe: lorabake lock"),
        ),
        (b"", ("recipe.lock.yaml: is empty", ANEW)),
        (b"\xff\xfe", ("recipe.lock.yaml: is no text in UTF-8", ANEW)),
        (b"[]", ("recipe.lock.yaml:1:1: the lock must be a mapping, found a list", ANEW)),
    ],
)
def test_a_lock_that_is_none_is_told(recipe: Path, content: bytes | None, expected: tuple[str, str]) -> None:
    if content is not None:
        lock_of(recipe).write_bytes(content)
    with pytest.raises(LockError) as caught:
        read_lock(recipe)
    assert caught.value.lines[0] == expected[0]
    assert caught.value.lines[1].startswith(expected[1])
    assert lock(recipe).is_changed, "it is made anew"


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from(["cut", "flip", "double"]))
def test_a_damaged_lock_is_refused_or_another_lock(place: int, how: str) -> None:
    """No damage ends in anything but a lock or a LockError."""
    text = good()
    place %= len(text)
    damaged = {
        "cut": text[:place],
        "flip": text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :],
        "double": text[:place] + text[place : place + 9] + text[place:],
    }[how]
    with suppress(LockError):
        parse_lock(damaged, Path("recipe.yaml"))
