"""Side files: what a link in a model's folder may bring into the output, and what it may not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabake.baking import plan
from lorabake.errors import FileError
from lorabake.recipe import load_recipe
from lorabake.tensors.links import MOST, copy_file, files_below
from tests import builders as b

SECRET = "what nobody should see"


def world(folder: Path) -> Path:
    """Make a diffusers folder, something beside it, and a recipe that copies the folder."""
    b.sd1_folder(folder / "base")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "secret.json").write_text(SECRET)
    return b.recipe(folder, base="base", loras=[], output={"path": "out", "dtype": "bfloat16"})


def refused(recipe: Path, message: str) -> None:
    with pytest.raises(FileError) as caught:
        b.run(recipe)
    assert message in str(caught.value)
    assert not (recipe.parent / "out").exists()


OUTWARD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "absolute": (lambda base: os.symlink(base.parent / "elsewhere/secret.json", base / "a.json"), "a.json", ""),
    "relative": (lambda base: os.symlink("../elsewhere/secret.json", base / "a.json"), "a.json", ""),
    "of a component": (
        lambda base: os.symlink("../../elsewhere/secret.json", base / "unet/a.json"),
        "unet/a.json",
        "",
    ),
    "a folder": (lambda base: os.symlink("../elsewhere", base / "more"), "more", "folder"),
    "a folder in a folder": (
        lambda base: (os.mkdir(base / "in"), os.symlink("../../elsewhere", base / "in/more")),
        "in/more",
        "folder",
    ),
    "by way of a link inside": (
        lambda base: (os.symlink("b.json", base / "a.json"), os.symlink("../elsewhere/secret.json", base / "b.json")),
        "a.json",
        "",
    ),
}


@pytest.mark.parametrize("case", OUTWARD)
def test_a_link_that_leads_out_is_refused(case: str, tmp_path: Path) -> None:
    recipe = world(tmp_path)
    lead, link, what = OUTWARD[case]
    lead(tmp_path / "base")
    target = tmp_path / "elsewhere" / ("" if what else "secret.json")
    refused(recipe, f"{tmp_path / 'base' / link}: is a link to {target}, which is not in {tmp_path / 'base'}\n")


@pytest.mark.parametrize("case", ["a file", "a folder", "out and back", "by another name of the folder"])
def test_a_link_inside_is_copied_as_what_it_points_to(case: str, tmp_path: Path) -> None:
    recipe, base = world(tmp_path), tmp_path / "base"
    (base / "notes").mkdir()
    (base / "notes/a.txt").write_text("a note")
    wanted = "linked.txt"
    if case == "a file":
        (base / wanted).symlink_to("notes/a.txt")
    elif case == "a folder":
        wanted = "linked/a.txt"
        (base / "linked").symlink_to("notes")
    elif case == "out and back":
        (tmp_path / "elsewhere/back").symlink_to(base / "notes/a.txt")
        (base / wanted).symlink_to("../elsewhere/back")
    else:
        (tmp_path / "alias").symlink_to("base")
        (base / wanted).symlink_to(tmp_path / "alias/notes/a.txt")
    b.run(recipe)
    assert (tmp_path / "out" / wanted).read_text() == "a note"
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def cached(folder: Path) -> Path:
    """Turn the folder `base` into a snapshot of the Hugging Face cache, and return that."""
    model = folder / "models--someone--model"
    snapshot = model / "snapshots" / ("0" * 40)
    (model / "blobs").mkdir(parents=True)
    for path in sorted((folder / "base").rglob("*")):
        if path.is_file():
            place, blob = snapshot / path.relative_to(folder / "base"), model / "blobs" / b.sha256(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(blob)
            place.symlink_to(os.path.relpath(blob, place.parent))
    return snapshot


@pytest.mark.parametrize("way", ["itself", "behind a link"])
def test_a_snapshot_of_the_cache(way: str, tmp_path: Path) -> None:
    recipe = world(tmp_path)
    b.run(recipe)
    wanted = b.tree(tmp_path / "out")
    snapshot = cached(tmp_path)
    if way == "behind a link":
        (tmp_path / "mine").symlink_to(snapshot)
    base = "mine" if way == "behind a link" else str(snapshot.relative_to(tmp_path))
    b.run(b.recipe(tmp_path, base=base, loras=[], output={"path": "again", "dtype": "bfloat16"}))
    found = b.tree(tmp_path / "again")
    assert found.keys() == wanted.keys()
    assert all(found[name] == wanted[name] for name in wanted if name.endswith(".json"))


@pytest.mark.parametrize(
    "way", ["past the blobs", "a blob that is a link", "blobs that are a link", "another model's"]
)
def test_a_snapshot_may_hold_its_own_blobs_only(way: str, tmp_path: Path) -> None:
    world(tmp_path)
    snapshot = cached(tmp_path)
    model, secret = snapshot.parents[1], tmp_path / "elsewhere/secret.json"
    if way == "past the blobs":
        (snapshot / "a.json").symlink_to("../../../elsewhere/secret.json")
    elif way == "a blob that is a link":
        (model / "blobs/abc").symlink_to(secret)
        (snapshot / "a.json").symlink_to("../../blobs/abc")
    elif way == "blobs that are a link":
        shutil.rmtree(model)
        b.sd1_folder(snapshot)
        (model / "blobs").symlink_to(tmp_path / "elsewhere")
        (snapshot / "a.json").symlink_to("../../blobs/secret.json")
    else:
        (tmp_path / "models--other--model/blobs").mkdir(parents=True)
        (tmp_path / "models--other--model/blobs/abc").write_text(SECRET)
        (snapshot / "a.json").symlink_to("../../../models--other--model/blobs/abc")
    base = str(snapshot.relative_to(tmp_path))
    recipe = b.recipe(tmp_path, base=base, loras=[], output={"path": "out", "dtype": "bfloat16"})
    refused(recipe, f"{snapshot / 'a.json'}: is a link to ")


def test_a_link_that_comes_after_the_plan(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "base/a.txt").symlink_to("../secret")
    with pytest.raises(FileError, match="is a link to "):
        copy_file(tmp_path / "base", tmp_path / "base/a.txt", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_links_that_name_the_same_folders_again_and_again(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"d{number}").mkdir()
        for name in "ab":
            (tmp_path / f"d{number}" / name).symlink_to(f"../d{number + 1}")
    (tmp_path / "d25").mkdir()
    with pytest.raises(FileError, match=f"holds more than {MOST:,} files and folders"):
        list(files_below(tmp_path))


def test_folders_without_end(tmp_path: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(40):
            os.mkdir("a")
            os.chdir("a")
    finally:
        os.chdir(here)
    with pytest.raises(FileError, match="lies more than 32 folders deep"):
        list(files_below(tmp_path))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/secret.safetensors", "..", "a/b.safetensors", ""])
def test_an_index_names_files_beside_it_only(name: str, tmp_path: Path) -> None:
    b.llama(tmp_path / "base", shards=2)
    index = tmp_path / "base/model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001-of-00002.safetensors", name))
    with pytest.raises(FileError, match="which is no file beside it"):
        plan(load_recipe(b.recipe(tmp_path, base="base", loras=[], output={"path": "out", "dtype": "float16"})))
