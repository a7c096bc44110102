"""The contract of an output: another form is one class, and several outputs are written at once."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake.baking import plan
from lorabake.errors import SurroundingsError, TargetError
from lorabake.execution import execute
from lorabake.planning import Plan
from lorabake.planning.files import OutputFile
from lorabake.recipe import load_recipe
from lorabake.writing import beside
from lorabake.writing.commit import Made, identity
from lorabake.writing.inputs import Inputs
from lorabake.writing.output import Output
from lorabake.writing.partial import Partial, partial_of
from tests import builders as b


def silent(message: str) -> None:
    raise AssertionError(message)


def bake_into(made: Plan, inputs: Inputs, output: Output) -> None:
    """Do what `baking.bake` does between the opening of an output and its end."""
    (executed,) = execute(
        [made], inputs, [output.weights], device="cpu", workers=2, progress=lambda count: None, warn=silent
    )
    output.complete(executed.hashes, executed.digests, executed.device).commit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.recipe(tmp_path)
    return tmp_path


class Boxed:
    """Be a form of its own, as a later one would be: the one file lies in a folder, with a note beside it."""

    rest_size = 4

    def place(self, root: Path, file: OutputFile) -> Path:
        return root / "inner" / "model.safetensors"

    def check_sort(self, target: Path) -> None:
        if not target.is_dir():
            raise TargetError(f"{target}: is no box")

    def first_lost(self, root: Path) -> Path | None:
        return Path("mine") if (root / "mine").exists() else None

    def holds_rest(self, root: Path) -> bool:
        return (root / "note").is_file()

    def prepare(self, root: Path) -> None:
        (root / "inner").mkdir(parents=True)

    def complete(self, root: Path, *, fsync: bool) -> None:
        (root / "note").write_text("note")


def boxed(folder: Path, *, overwrite: bool) -> Path:
    planned = plan(load_recipe(folder / "recipe.yaml"), folder / "elsewhere" / "box.safetensors")
    made = replace(planned, path=folder / "box.safetensors")  # a path with a folder at it would mean a file in that
    with Inputs(made) as inputs, Output(made, inputs, overwrite=overwrite, fsync=True, form=Boxed()) as output:
        bake_into(made, inputs, output)
    return made.path


def test_another_form_is_one_class(folder: Path) -> None:
    alone = b.header(b.run(folder / "recipe.yaml").path)
    box = boxed(folder, overwrite=False)
    assert {*b.tree(box)} == {"inner/model.safetensors", "note"}
    inner = b.header(box / "inner" / "model.safetensors")
    assert (inner[0], inner[2]) == (alone[0], alone[2])
    boxed(folder, overwrite=False)  # the same bake again
    (box / "note").unlink()
    with pytest.raises(TargetError, match="exists and holds something else"):
        boxed(folder, overwrite=False)
    (box / "mine").write_text("precious")
    with pytest.raises(TargetError, match="holds mine, which this bake does not put there"):
        boxed(folder, overwrite=True)
    (box / "mine").unlink()
    boxed(folder, overwrite=True)
    assert {*b.tree(box)} == {"inner/model.safetensors", "note"}
    assert b.header(box / "inner" / "model.safetensors") == inner
    assert not list(folder.glob("*.partial"))


def test_the_same_form_refuses_what_is_of_another_sort(folder: Path) -> None:
    (folder / "box.safetensors").write_bytes(b"a file")
    with pytest.raises(TargetError, match="is no box"):
        boxed(folder, overwrite=True)
    assert (folder / "box.safetensors").read_bytes() == b"a file"


def test_several_outputs_of_one_base_are_written_at_once(folder: Path) -> None:
    strengths = (0.25, 0.5, 1.0)
    plans, alone = [], []
    for strength in strengths:
        b.recipe(
            folder,
            loras=[{"path": "lora.safetensors", "strength": strength}],
            output={"path": f"out-{strength}.safetensors"},
        )
        made = plan(load_recipe(folder / "recipe.yaml"))
        alone.append(b.run(folder / "recipe.yaml").path.read_bytes())
        made.path.unlink()
        plans.append(made)
    with ExitStack() as stack:
        inputs = stack.enter_context(Inputs(*plans))
        outputs = [stack.enter_context(Output(made, inputs, overwrite=False, fsync=False)) for made in plans]
        assert {path.name for path in folder.glob("*.partial")} == {f"{made.path.name}.partial" for made in plans}
        for made, output in zip(plans, outputs, strict=True):
            bake_into(made, inputs, output)
    assert [made.path.read_bytes() for made in plans] == alone
    assert not list(folder.glob("*.partial"))


def test_two_outputs_of_one_name_are_not_written_at_once(folder: Path) -> None:
    made = plan(load_recipe(folder / "recipe.yaml"))
    with Inputs(made, made) as inputs, Output(made, inputs, overwrite=False, fsync=False):
        second = Output(made, inputs, overwrite=False, fsync=False)
        with pytest.raises(TargetError, match="another bake is writing this target"), second:
            pass
        assert partial_of(made.path).is_dir()
    assert not list(folder.glob("out*"))


@pytest.mark.parametrize("when", ["before the moves", "while one is half done"])
def test_the_folder_of_a_bake_goes_unless_the_next_bake_needs_it(tmp_path: Path, when: str) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    partial = Partial(target)
    partial.open()
    partial.new.write_bytes(b"new")
    is_now = identity(partial.new)
    assert is_now is not None
    move = Made(partial.new, target, is_now).move()

    def fail() -> None:
        if when == "while one is half done":
            move.do()
        raise SurroundingsError("the disk has failed")

    with pytest.raises(SurroundingsError, match="the disk"), partial.moving([move], durable=False):
        fail()
    partial.clean()
    partial.clean()  # it may be called again
    if when == "before the moves":
        assert not partial.path.exists()
        assert target.read_bytes() == b"old"
    else:
        assert partial.new.read_bytes() == b"old"
        assert target.read_bytes() == b"new"


def test_an_embedding_that_another_program_replaces_is_known_by_its_inode(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b.save(
        folder / "lora.safetensors",
        load_file(folder / "lora.safetensors") | {"bundle_emb.word.clip_l": torch.full((1, b.TEXT), 0.5)},
    )
    create, written = beside.Beside.create, []

    def replaced(self: beside.Beside) -> None:
        create(self)
        place = self.made[0].place
        written.append(place.read_bytes())
        place.rename(place.with_name("elsewhere"))
        place.write_bytes(written[0])  # the same bytes, and not the file that the bake has written
        os.unlink(place.with_name("elsewhere"))

    monkeypatch.setattr(beside.Beside, "create", replaced)
    with pytest.raises(TargetError, match=r"out\.word\.safetensors: another program has changed or removed it"):
        b.run(folder / "recipe.yaml")
    assert written
    assert not list(folder.glob("out*"))
