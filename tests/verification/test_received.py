"""What whoever receives a baked file can do with it: find its inputs again, verify it, and write its recipe."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from lorabake import load_recipe
from lorabake.cli.recipe import recipe as recipe_command
from lorabake.errors import FileError, LorabakeError, TargetError
from lorabake.sources.received import Received, received
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, Status, Verification
from tests import builders as b

BOTH = VerifyOptions(stages=("structure", "weights"))
STRUCTURE = VerifyOptions(stages=("structure",))
LORAS: tuple[dict[str, object], ...] = (
    {"path": "loras/one.safetensors", "strength": 0.8},
    {"path": "loras/two.safetensors", "strength": 0.5},
)
NAMES = ("base.safetensors", "one.safetensors", "two.safetensors")


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hold models/base.safetensors, two LoRAs in loras, and a bake of them; the current folder is empty."""
    monkeypatch.setattr(b, "W", 16)
    monkeypatch.setattr(b, "TEXT", 16)
    place = tmp_path / "studio"
    b.save(place / "models" / "base.safetensors", b.sd1(extras=False))
    (place / "loras").mkdir()
    b.sd1_lora(place / "loras" / "one.safetensors", seed=1, rank=4, size=0.1)
    b.sd1_lora(place / "loras" / "two.safetensors", seed=50, rank=2, size=0.1)
    baked(place)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return place


def baked(place: Path, loras: Sequence[dict[str, object]] = LORAS, **fields: object) -> Path:
    b.run(b.recipe(place, base="models/base.safetensors", loras=[*loras], **fields), overwrite=True)
    return place / "out.safetensors"


def flat(studio: Path, *names: str) -> Path:
    """Put the baked file and inputs into one folder, as a receiver has them."""
    place = studio.parent / "flat"
    place.mkdir()
    shutil.copy(studio / "out.safetensors", place)
    for name in names:
        shutil.copy(studio / ("models" if name == NAMES[0] else "loras") / name, place)
    return place


def rows(verification: Verification, check: str) -> list[Finding]:
    return [row for row in verification.findings if row.check == check]


def paths(found: Received) -> list[tuple[str, str]]:
    return [(each.place.name if each.place else "", each.by) for each in found.found]


# -- the inputs -----------------------------------------------------------------------------------------------


def test_inputs_in_one_flat_folder_are_found(studio: Path) -> None:
    place = flat(studio, *NAMES)
    verification = verify(received(place / "out.safetensors"), options=BOTH)
    assert verification.status is Status.PASS
    told = {row.subject: row.note for row in rows(verification, "structure.found")}
    assert told.keys() == {"models/base.safetensors", "loras/one.safetensors", "loras/two.safetensors"}
    assert told["loras/one.safetensors"].startswith(f"is {place / 'one.safetensors'}: its size and its digest")


def test_an_input_with_another_name_is_found_by_its_digest(studio: Path) -> None:
    place = flat(studio, *NAMES)
    for name in NAMES:
        (place / name).rename(place / f"my {name}")
    found = received(place / "out.safetensors")
    assert paths(found) == [(f"my {name}", "digest") for name in NAMES]
    assert verify(found, options=BOTH).status is Status.PASS


def test_inputs_lie_in_several_folders_and_below(studio: Path, tmp_path: Path) -> None:
    away = flat(studio)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.move(studio / "models" / NAMES[0], tmp_path / "deep" / "er")
    assert paths(received(away / "out.safetensors", [tmp_path / "deep", studio / "loras"])) == [
        (name, "digest") for name in NAMES
    ]


def test_the_file_with_the_digest_comes_before_one_with_the_name(studio: Path) -> None:
    place = flat(studio, NAMES[0], NAMES[2])
    (place / "older").mkdir()
    shutil.copy(studio / "loras" / "one.safetensors", place / "older" / "kept.safetensors")
    b.sd1_lora(place / "one.safetensors", seed=7, rank=4, size=0.1)
    found = received(place / "out.safetensors", place)
    assert paths(found)[1] == ("kept.safetensors", "digest")
    assert paths(received(place / "out.safetensors"))[1] == ("one.safetensors", "name")


def test_another_file_of_the_name_is_a_mismatch_that_is_explained(studio: Path) -> None:
    place = flat(studio, NAMES[0], NAMES[2])
    b.sd1_lora(place / "one.safetensors", seed=7, rank=4, size=0.1)
    verification = verify(received(place / "out.safetensors"), options=BOTH)
    assert verification.status is Status.FAIL
    (warned,) = [row for row in rows(verification, "structure.found") if row.status is Status.WARN]
    assert "by its name alone: no file here has the stated size and digest" in warned.note
    assert any(row.status is Status.FAIL for row in rows(verification, "weights.input"))


def test_what_is_missing_is_told_with_its_digest(studio: Path) -> None:
    place = flat(studio, NAMES[1])
    with pytest.raises(FileError) as caught:
        received(place / "out.safetensors").complete()
    text = str(caught.value)
    assert f"loras/two.safetensors: SHA-256 {b.sha256(studio / 'loras' / 'two.safetensors')}" in text
    assert "models/base.safetensors: SHA-256 of its header " in text
    assert "one.safetensors" not in text
    assert text.endswith("Say in which folders they lie with inputs=[…]: they may have other names.")


def test_a_folder_that_is_none_is_told(studio: Path) -> None:
    with pytest.raises(FileError, match=r"none: is no folder"):
        received(studio / "out.safetensors", studio / "none")


def test_a_base_that_is_a_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    b.sd1_folder(tmp_path / "studio" / "models" / "base")
    b.sd1_lora(tmp_path / "studio" / "lora.safetensors")
    b.run(b.recipe(tmp_path / "studio", base="models/base", output={"path": "out"}))
    (tmp_path / "studio" / "models" / "base").rename(tmp_path / "studio" / "other")
    found = received(tmp_path / "studio" / "out", tmp_path / "studio")
    assert paths(found) == [("other", "digest"), ("lora.safetensors", "digest")]
    assert verify(found, options=STRUCTURE).status is Status.PASS


# -- one bake in other words ----------------------------------------------------------------------------------


def judged(studio: Path, loras: Sequence[dict[str, object]], **fields: object) -> Finding:
    """Compare the baked file's header with a recipe; return the finding on its metadata."""
    other = b.recipe(studio, base=fields.pop("base", "models/base.safetensors"), loras=[*loras], **fields)
    verification = verify(load_recipe(other), None, STRUCTURE)
    assert all(row.status is Status.PASS for row in rows(verification, "structure.base"))
    (row,) = rows(verification, "structure.metadata")
    return row


def test_another_order_of_the_loras_is_the_same_bake(studio: Path) -> None:
    row = judged(studio, LORAS[::-1])
    assert row.status is Status.PASS
    assert "with the LoRAs in another order, which is the same bake: their changes are summed" in row.note
    assert verify(load_recipe(studio / "recipe.yaml"), None, BOTH).status is Status.PASS


@pytest.mark.parametrize(
    "fields", [{"compose": "sequential"}, {"method": {"name": "dare_linear", "density": 0.5}}], ids=str
)
def test_where_the_order_matters_another_one_is_another_bake(studio: Path, fields: dict[str, object]) -> None:
    baked(studio, **fields)
    assert judged(studio, LORAS, **fields).status is Status.PASS
    row = judged(studio, LORAS[::-1], **fields)
    assert row.status is Status.FAIL
    assert "loras[0].path is " in row.note


def test_strengths_that_change_places_are_another_bake(studio: Path) -> None:
    strengths = ({**LORAS[0], "strength": 0.5}, {**LORAS[1], "strength": 0.8})
    assert judged(studio, strengths).status is Status.FAIL


def test_other_paths_to_the_same_files_are_the_same_bake(studio: Path) -> None:
    for name, new in (("models/base.safetensors", "sd.safetensors"), ("loras/two.safetensors", "2.safetensors")):
        shutil.move(studio / name, studio / new)
    row = judged(studio, [{**LORAS[1], "path": "2.safetensors"}, LORAS[0]], base="sd.safetensors")
    assert row.status is Status.PASS
    assert "models/base.safetensors is sd.safetensors here" in row.note


def test_another_file_at_another_path_is_another_bake(studio: Path) -> None:
    b.sd1_lora(studio / "like two.safetensors", seed=51, rank=2, size=0.1)
    row = judged(studio, [LORAS[0], {**LORAS[1], "path": "like two.safetensors"}])
    assert row.status is Status.FAIL
    assert 'loras[1].path is "loras/two.safetensors" there and "like two.safetensors" here' in row.note


def test_a_digest_in_one_recipe_alone_is_no_difference(studio: Path) -> None:
    pinned = {**LORAS[0], "sha256": b.sha256(studio / "loras" / "one.safetensors")}
    base = {"path": "models/base.safetensors", "sha256": b.sha256(studio / "models" / "base.safetensors")}
    assert judged(studio, [pinned, LORAS[1]], base=base).status is Status.PASS
    b.run(b.recipe(studio, base=base, loras=[pinned, LORAS[1]]), overwrite=True)
    assert judged(studio, LORAS).status is Status.PASS


# -- the recipe ------------------------------------------------------------------------------------------------


def write(*arguments: object) -> str:
    result = CliRunner().invoke(recipe_command, [*map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_recipe_of_a_file_bakes_it_again(studio: Path) -> None:
    fields: dict[str, object] = {"compute_dtype": "float64", "output": {"dtype": "float32", "hash": False}}
    loras = (
        {**LORAS[0], "strength": {"unet": 0.5}, "blocks": {"*.resnets.*": 0.5}, "ignore": ["lora_te_*"]},
        LORAS[1],
    )
    before = b.sha256(baked(studio, loras, **fields))
    write(studio / "out.safetensors", "-o", studio / "again.yaml")
    (studio / "out.safetensors").unlink()
    assert load_recipe(studio / "again.yaml").loras[0].strength == {"unet": 0.5}
    assert b.sha256(b.run(studio / "again.yaml").path) == before


def test_fields_of_the_header_and_what_the_model_predicts_are_in_it(studio: Path) -> None:
    output = {"metadata": {"modelspec.author": None, "modelspec.license": "MIT"}}
    before = b.sha256(baked(studio, output=output, verify={"prompts": ["a cat"], "prediction": "v_prediction"}))
    assert verify(received(studio / "out.safetensors"), options=STRUCTURE).status is Status.PASS
    write(studio / "out.safetensors", "-o", studio / "again.yaml")
    (studio / "out.safetensors").unlink()
    assert b.sha256(b.run(studio / "again.yaml").path) == before


def test_its_paths_are_where_the_inputs_lie(studio: Path) -> None:
    place = flat(studio, *NAMES)
    (studio.parent / "recipes").mkdir()
    written = studio.parent / "recipes" / "again.yaml"
    assert write(place / "out.safetensors", "-o", written) == ""
    recipe = load_recipe(written)
    assert [lora.path for lora in recipe.loras] == ["../flat/one.safetensors", "../flat/two.safetensors"]
    again, there = b.run(written).path, place / "out.safetensors"
    assert all((tensor == load_file(there)[key]).all() for key, tensor in load_file(again).items())
    assert verify(recipe, there, STRUCTURE).status is Status.PASS


def test_without_a_file_it_is_printed_and_what_is_missing_is_told(studio: Path) -> None:
    place = flat(studio, NAMES[0])
    b.sd1_lora(place / "one.safetensors", seed=7, rank=4, size=0.1)
    output = write(place / "out.safetensors")
    assert "# lora 2: loras/two.safetensors, " in output
    assert "warning: loras/two.safetensors: was not found: SHA-256 " in output
    assert "one.safetensors has its name, and is another file: its size or digest" in output


def test_a_recipe_that_is_there_stays(studio: Path) -> None:
    write(studio / "out.safetensors", "-o", studio / "again.yaml")
    write(studio / "out.safetensors", "-o", studio / "again.yaml")
    with pytest.raises(TargetError, match="exists and holds something else"):
        write(studio / "out.safetensors", "-o", studio / "recipe.yaml")
    with pytest.raises(LorabakeError, match="holds no recipe"):
        write(studio / "models" / "base.safetensors")
