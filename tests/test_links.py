"""Files of a folder that a bake leaves as they are become hard links on request, and nothing is written into them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, lock, verify
from lorabake.artifacts.publishing import publication_of
from lorabake.baking import bake, plan
from lorabake.batch import BatchOptions, Outcome, bake_all, receipts
from lorabake.batch.engines.opening import are_whole
from lorabake.batch.groups import Limits, passes
from lorabake.batch.shards import Shard
from lorabake.errors import ArgumentError, FileError, LorabakeError, SurroundingsError, TargetError
from lorabake.options import RunOptions
from lorabake.planning.links import linked, with_twins
from lorabake.recipe import Recipe, load_recipe, load_recipes
from lorabake.results import BakeResult
from lorabake.tensors.reader import fingerprint
from lorabake.visible import size_of
from lorabake.writing.commit import Move
from lorabake.writing.inputs import Inputs
from lorabake.writing.linking import link_or_copy, linkable, room_of, saving_of
from lorabake.writing.names import after_links, known_again
from lorabake.writing.partial import Partial, partial_of
from tests import builders as b
from tests.documents import check
from tests.test_cli import Cli
from tests.test_cli import cli as cli  # a fixture

VAE = "vae/diffusion_pytorch_model.safetensors"
PART = 6000
"""Bytes of a part of a batch: the base has some ten."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    b.sd1_folder(tmp_path / "base")
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.recipe(tmp_path, base="base", output={"path": "out"})
    return tmp_path


def run(folder: Path, **options: object) -> BakeResult:
    return b.run(folder / "recipe.yaml", **options)


def names(folder: Path) -> list[str]:
    """List the files with weights of the output that are links, by their folders or names."""
    found = sorted((folder / "out").rglob("*.safetensors"))
    return [path.relative_to(folder / "out").as_posix() for path in found if path.stat().st_nlink > 1]


def times(folder: Path) -> dict[str, tuple[int, ...]]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    states = [path.stat() for path in found]
    return {
        str(path): (each.st_ino, each.st_mode, each.st_size, each.st_mtime_ns)
        for path, each in zip(found, states, strict=True)
    }


def test_an_untouched_file_is_the_bases_own(folder: Path) -> None:
    alone = run(folder)
    plain = b.tree(folder / "out")
    before, inputs = times(folder / "base"), b.tree(folder / "base")
    result = run(folder, link=True, fsync=True)
    made = b.tree(folder / "out")
    assert names(folder) == [VAE]
    assert (folder / "out" / VAE).samefile(folder / "base" / VAE)
    assert {name for name in plain if plain[name] != made[name]} == {VAE}
    assert result.data_sha256 == alone.data_sha256
    assert result.size == sum(len(made[name]) for name in result.data_sha256)
    assert (times(folder / "base"), b.tree(folder / "base")) == (before, inputs)
    assert not partial_of(folder / "out").exists()
    (folder / "out" / VAE).unlink()
    assert times(folder / "base") == before


def test_verify_names_the_links_and_accepts_copies(folder: Path) -> None:
    b.save(folder / "base" / VAE, load_file(folder / "base" / VAE), {"sshs_model_hash": "0" * 64})  # of other bytes
    run(folder, link=True)
    found = verify(folder / "recipe.yaml", options=VerifyOptions(stages=["structure", "weights"]))
    b.assert_right(found)
    (note,) = [each.note for each in found.findings if each.check == "structure.links"]
    assert note == f"hard links to the base's own files: {VAE}"
    assert not any(each.check == "weights.digest" and each.subject == VAE for each in found.findings)
    shutil.copytree(folder / "out", folder / "copy")
    found = verify(folder / "recipe.yaml", folder / "copy", options=VerifyOptions(stages=["structure"]))
    (note,) = [each.note for each in found.findings if each.check == "structure.links"]
    assert note == f"copies of the base's files, headers included: {VAE}"


def test_each_form_is_up_to_date_for_itself(folder: Path) -> None:
    recipe = folder / "recipe.yaml"
    for link in (True, False, True):
        made = bake(recipe, RunOptions(link=link, fsync=False))  # it may replace the other form: nothing is lost
        assert not made.is_up_to_date
        assert names(folder) == ([VAE] if link else [])
        again = bake(recipe, RunOptions(link=link, fsync=False))
        assert again.is_up_to_date
        assert VAE not in again.data_sha256 or again.data_sha256 == made.data_sha256


def test_a_bake_over_links_never_writes_into_the_base(folder: Path) -> None:
    before = b.tree(folder / "base")
    for link, strength in ((True, 1), (True, 0.5), (False, 0.25), (True, 0.5)):
        b.recipe(
            folder, base="base", loras=[{"path": "lora.safetensors", "strength": strength}], output={"path": "out"}
        )
        run(folder, link=link)
        assert b.tree(folder / "base") == before
        assert names(folder) == ([VAE] if link else [])
    b.recipe(folder, base="base", output={"path": "out"})
    with pytest.raises(TargetError, match="exists and holds something else"):
        run(folder, link=True, overwrite=False)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_no_link_can_be_made_the_file_is_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse(monkeypatch, code)
    if code == errno.EPERM:
        monkeypatch.setattr("lorabake.writing.copying.share_range", lambda *_: False)
        monkeypatch.setattr("lorabake.writing.copying.copy_range", lambda *_: None)
    warned: list[str] = []
    run(folder, link=True, warn=warned.append)
    assert warned == [
        f"{folder / 'out'}: 1 file could not be linked to the base's, and copied instead: {os.strerror(code)}"
    ]
    assert names(folder) == []
    assert (folder / "out" / VAE).read_bytes() == (folder / "base" / VAE).read_bytes()
    assert bake(folder / "recipe.yaml", RunOptions(link=True, fsync=False)).is_up_to_date


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refusing(source: str, place: Path) -> None:
        raise OSError(code, os.strerror(code), str(source), None, str(place))

    monkeypatch.setattr("lorabake.writing.linking.os.link", refusing)


def test_a_failure_leaves_neither_a_link_nor_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = times(folder / "base")
    with monkeypatch.context() as patch:
        patch.setattr("lorabake.writing.folder.Folder.complete", lambda *_, **__: os.link("/nowhere", "/nowhere"))
        with pytest.raises(LorabakeError):
            run(folder, link=True)
    with monkeypatch.context() as patch:
        refuse(patch, errno.EIO)
        with pytest.raises(SurroundingsError):
            run(folder, link=True)
    assert not [*folder.glob("out*")]
    assert times(folder / "base") == before
    assert (folder / "base" / VAE).stat().st_nlink == 1


@pytest.mark.parametrize("is_link", [True, False])
def test_a_base_that_changed_at_the_last_moment_stops_the_bake(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_link: bool
) -> None:
    planned = linked(plan(folder / "recipe.yaml"))
    link = planned.files[2].link
    assert link is not None
    if not is_link:
        refuse(monkeypatch, errno.EXDEV)
    with Inputs(planned) as inputs:
        (folder / "base" / VAE).write_bytes((folder / "base" / VAE).read_bytes())
        with pytest.raises(FileError, match="changed while it was read; nothing was written"):
            link_or_copy(link, folder / "place", inputs, durable=False)


def test_a_file_whose_header_says_what_is_true_no_more_is_no_link(folder: Path) -> None:
    made = plan(folder / "recipe.yaml")
    file = made.files[2]
    says = {**file.metadata, "quantization_config": '{"quant_method": "fp8"}'}
    parted = (*made.files[:2], replace(file, metadata=says))
    computed = {target.key for step in made.steps for target in step.targets}
    assert [each.twin for each in with_twins(made.sources, made.layout, parted, computed)] == [None] * 3
    found = with_twins(made.sources, made.layout, made.files, computed)
    assert [each.twin is not None for each in found] == [False, False, True]


def test_what_a_killed_bake_left_may_have_links(folder: Path) -> None:
    left = Partial(folder / "out")
    left.open()
    place = left.new / VAE
    place.parent.mkdir(parents=True)
    os.link(folder / "base" / VAE, place)
    left.leave()
    run(folder)  # the link goes while the base is read
    assert (folder / "base" / VAE).stat().st_nlink == 1


def test_a_link_in_the_base_is_followed(folder: Path) -> None:
    snapshot = folder / "models--a--b" / "snapshots" / "1"
    shutil.move(folder / "base", snapshot)
    blob = snapshot.parent.parent / "blobs" / "0"
    blob.parent.mkdir()
    (snapshot / VAE).rename(blob)
    (snapshot / VAE).symlink_to(os.path.relpath(blob, (snapshot / VAE).parent))
    b.recipe(folder, base=str(snapshot), output={"path": "out"})
    run(folder, link=True)
    assert not (folder / "out" / VAE).is_symlink()
    assert (folder / "out" / VAE).stat().st_ino == blob.stat().st_ino


SAME = "nothing to link: no file but the first stays as it is"


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"base": "base.safetensors"}, "nothing to link: the base is a single file"),
        ({"output": {"layout": "single"}}, "nothing to link: the output has another layout than the base"),
        ({"output": {"dtype": "bfloat16"}}, SAME),
        ({"output": {"shard_size": "1KB"}}, SAME),
        ({"vae": "vae.safetensors"}, SAME),
    ],
)
def test_nothing_to_link_is_a_note(folder: Path, fields: dict[str, object], note: str) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    b.save(folder / "vae.safetensors", b.vae_file("diffusers", seed=9))
    is_file = "single" in str(fields) or "base" in fields
    path = "out.safetensors" if is_file else "out"
    output = {"path": path, **fields.pop("output", {})}  # type: ignore[dict-item]
    b.recipe(folder, **{"base": "base", **fields}, output=output)
    planned = plan(folder / "recipe.yaml")
    once = linked(planned)
    assert once.notes == (*planned.notes, note)
    assert linked(once) == once
    assert (once.files, once.copies) == (planned.files, planned.copies)


def test_shards_are_linked_and_the_index_is_right(folder: Path) -> None:
    tensors = b.llama(folder / "llm", shards=5)
    module = b.Values(3)
    slots = {"down": module(2, 8), "up": module(8, 2)}
    b.peft(folder / "peft", {"model.layers.1.self_attn.q_proj": slots}, r=2, lora_alpha=2)
    b.recipe(folder, base="llm", loras=["peft"], output={"path": "out"})
    run(folder, link=True)
    made = names(folder)
    assert len(made) == 3, "neither the first, which carries the recipe, nor the one with the changed weight"
    loaded = {}
    index = json.loads((folder / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    for name, shard in index.items():
        loaded[name] = load_file(folder / "out" / shard)[name]
    changed = {name for name in tensors if not torch.equal(tensors[name], loaded[name])}
    assert changed == {"model.layers.1.self_attn.q_proj.weight"}
    b.recipe(folder, base="llm", loras=["peft"], output={"path": "out", "shard_size": "1KB"})
    before = b.tree(folder / "llm")
    run(folder)  # links that have other names by now are no loss
    assert names(folder) == []
    assert b.tree(folder / "llm") == before


# -- what links save --------------------------------------------------------------------------------------


def test_a_plan_shows_what_links_would_save(folder: Path, cli: Cli) -> None:
    plain, asked = (check(cli("plan", "recipe.yaml", "--json", *more).out) for more in ((), ("--link",)))
    saved = plain["needed_disk_bytes"] - asked["needed_disk_bytes"]
    assert plain["linkable"] == asked["linkable"] == {"files": [VAE], "bytes": saved}
    assert plain["needed_disk_bytes"] == plain["output"]["bytes"]
    tensors, size = b.header(folder / "base" / VAE)[0], asked["linked"]["bytes"]
    assert (plain["linked"], asked["linked"]["tensors"]) == ({"tensors": 0, "bytes": 0}, len(tensors))
    for name, count in asked["linked"].items():
        assert plain["copied"][name] - asked["copied"][name] == count > 0
    text, linked_text = cli("plan", "recipe.yaml").out, cli("plan", "recipe.yaml", "--link").out
    hint = f"link      --link would link {VAE} to the base, not copy: {size_of(saved)} less to write\n"
    assert hint in text
    assert "\nlinked" not in text
    assert f"\nlinked    {len(tensors)} tensors, {size_of(size)}\n" in linked_text
    assert f"3 files, {size_of(asked['needed_disk_bytes'])} of it to write; " in linked_text
    assert f"note      linked to the base, not copied: {VAE}\n" in linked_text
    assert "would link" not in linked_text
    bake(folder / "recipe.yaml", RunOptions(link=True, fsync=False))
    written = [path.stat() for path in (folder / "out").rglob("*.safetensors")]
    assert sum(each.st_size for each in written if each.st_nlink == 1) == asked["needed_disk_bytes"]


def test_nothing_is_said_where_nothing_can_be_linked(folder: Path, cli: Cli) -> None:
    b.save(folder / "base.safetensors", b.sd1())
    b.recipe(folder, output={"path": "out.safetensors"})
    found = cli("plan", "recipe.yaml").out
    assert "--link" not in found
    assert check(cli("plan", "recipe.yaml", "--json").out)["linkable"] == {"files": [], "bytes": 0}
    assert "note      nothing to link: the base is a single file\n" in cli("plan", "recipe.yaml", "--link").out


def test_a_table_of_outputs_shows_what_links_would_save(folder: Path, cli: Cli) -> None:
    matrix = {"strength": [0.25, 0.5, 0.75]}
    lora = {"path": "lora.safetensors", "strength": "${strength}"}
    path = b.recipe(folder, base="base", loras=[lora], output={"path": "out-${strength}"}, matrix=matrix)
    plans = [plan(each) for each in load_recipes(path)]
    saved = sum(map(saving_of, plans))
    plain, asked = cli("plan", "recipe.yaml").out, cli("plan", "recipe.yaml", "--link").out
    assert f"\nlink      --link would link 3 files to the base, not copy: {size_of(saved)} less to write" in plain
    assert f"\nwrite     {size_of(sum(each.size for each in plans))} in 3 outputs" in plain
    assert f"\nwrite     {size_of(sum(each.size for each in plans) - saved)} in 3 outputs" in asked
    assert "would link" not in asked
    b.save(folder / "base.safetensors", b.sd1())
    b.recipe(folder, loras=[lora], output={"path": "out-${strength}.safetensors"}, matrix=matrix)
    note = "note      nothing to link: the base is a single file (3 outputs)\n"
    assert cli("plan", "recipe.yaml", "--link").out.endswith(note)


def test_links_take_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    plans = [plan(each) for each in several(folder, 3)]
    with_links = [linked(each) for each in plans]
    free = 3 * max(map(room_of, with_links))
    assert free < sum(each.size for each in plans)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    assert [len(each) for each in passes(with_links, Limits())] == [3]
    assert len([*passes(plans, Limits())]) > 1
    free = room_of(with_links[0])
    for link in (False, True):
        told = cli("plan", "0.yaml", *(("--link",) if link else ()))
        assert ("the disk has not enough room for it" in told.err) == (not link)


# -- another disk -----------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Path]:
    """Lend a folder on another disk."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second disk here: temporary files lie in /dev/shm, or it is not there")
    with tempfile.TemporaryDirectory(dir=shared) as place:
        yield Path(place)


def test_files_on_another_disk_are_copied(folder: Path, other: Path, cli: Cli) -> None:
    shutil.move(folder / "base", other / "base")
    (folder / "base").symlink_to(other / "base")
    planned = plan(folder / "recipe.yaml")
    assert (linkable(planned), saving_of(planned)) == ([], 0)
    assert room_of(linked(planned)) == linked(planned).size
    assert "--link" not in cli("plan", "recipe.yaml").out
    asked = cli("plan", "recipe.yaml", "--link")
    assert "warning   the base lies on another disk, so 1 file will be copied, not linked" in asked.err
    before = times(other / "base")
    baked = cli("bake", "recipe.yaml", "--link", "--no-fsync")
    copied = f"1 file could not be linked to the base's, and copied instead: {os.strerror(errno.EXDEV)}"
    assert (baked.code, copied in baked.err) == (0, True)
    assert times(other / "base") == before
    assert (folder / "out" / VAE).read_bytes() == (other / "base" / VAE).read_bytes()
    assert (folder / "out" / VAE).stat().st_nlink == 1
    b.assert_right(verify(folder / "recipe.yaml", options=VerifyOptions(stages=["structure", "weights"])))


def test_a_batch_links_on_one_disk_and_copies_to_the_other(folder: Path, other: Path) -> None:
    recipes = several(folder, 1)
    lora = {"path": "lora.safetensors", "strength": 0.75}
    recipes.append(load_recipe(b.recipe(folder, base="base", loras=[lora], output={"path": str(other / "out1")})))
    told = list[str]()
    assert run_all(recipes, told) == ["baked"] * 2
    assert [os.strerror(errno.EXDEV) in each for each in told] == [True]
    assert (folder / "out0" / VAE).samefile(folder / "base" / VAE)
    assert (other / "out1" / VAE).read_bytes() == (folder / "base" / VAE).read_bytes()


def test_an_input_that_is_opened_again_after_a_link_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where few files may be open, the base is opened again for the second output, after the link of the first."""
    planned = linked(plan(folder / "recipe.yaml"))
    link = planned.files[2].link
    assert link is not None
    monkeypatch.setattr("lorabake.writing.openfiles.open_files_allowed", lambda: 1)
    with Inputs(planned) as inputs:
        time.sleep(0.02)
        with inputs.open(folder / "lora.safetensors"):
            assert link_or_copy(link, folder / "first", inputs, durable=False) is None
        refuse(monkeypatch, errno.EXDEV)
        assert link_or_copy(link, folder / "second", inputs, durable=False) is not None
        inputs.check_unchanged()
    assert (folder / "second").read_bytes() == (folder / "base" / VAE).read_bytes()


# -- batches ---------------------------------------------------------------------------------------------


def several(folder: Path, count: int = 3, first: float = 0.5) -> list[Recipe]:
    made = []
    for number in range(count):
        lora = {"path": "lora.safetensors", "strength": first + number}
        path = b.recipe(folder, base="base", loras=[lora], output={"path": f"out{number}"})
        made.append(load_recipe(path.rename(folder / f"{number}.yaml")))
    return made


def run_all(made: list[Recipe], told: list[str], **others: object) -> list[str]:
    link = bool(others.pop("link", True))
    options = RunOptions(device="cpu", workers=2, fsync=False, warn=told.append, link=link, overwrite=True)
    return [each.status for each in bake_all(made, BatchOptions(run=options, **others))]  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [None, 1])
def test_a_batch_links_in_one_pass_or_several(folder: Path, memory: int | None) -> None:
    made, told = several(folder), list[str]()
    for _ in range(2):
        assert run_all(made, told, memory=memory) == ["baked"] * 3
        assert (folder / "base" / VAE).stat().st_nlink == 4
        made = several(folder, first=0.25)  # in the places of the linked ones
    assert told == []


def test_a_stopped_batch_goes_on_with_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told, kept = several(folder, 2), list[str](), list[int]()
    stop(made, monkeypatch)
    assert run_all(made, told, part_bytes=PART, kept=lambda _, size: kept.append(size)) == ["baked"] * 2
    assert (told, len(kept)) == ([], 2)
    assert (folder / "base" / VAE).stat().st_nlink == 3
    assert not [*folder.glob("*.partial")]


def test_a_stopped_batch_may_have_left_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = several(folder, 2)
    stop(made, monkeypatch)
    for number in range(2):
        place = Partial(folder / f"out{number}").new / VAE
        os.link(folder / "base" / VAE, place)
    told = list[str]()
    assert run_all(made, told, part_bytes=PART, memory=1) == ["baked"] * 2
    assert (told, (folder / "base" / VAE).stat().st_nlink) == ([], 3)


def test_a_batch_completes_what_was_killed_among_the_renames(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The links of the old output go then; the other outputs of the batch are baked of the same base."""
    made, told = several(folder, 2), list[str]()
    run_all(made, told)
    made = several(folder, 2, first=0.25)
    with monkeypatch.context() as patch:
        patch.setattr("lorabake.writing.partial.Partial.clean", lambda self, **_: self.leave())
        patch.setattr("lorabake.writing.partial.Partial.moving", killed_in)
        with pytest.raises(KeyboardInterrupt):
            run_all(made[:1], told, part_bytes=PART, link=False)
    assert run_all(made, told, part_bytes=PART, link=False) == ["current", "baked"]
    assert told == []


@contextmanager
def killed_in(partial: Partial, moves: Sequence[Move], *, durable: bool) -> Iterator[None]:
    partial._note(moves, durable=durable)
    yield
    raise KeyboardInterrupt


def test_what_a_batch_left_is_not_taken_for_the_other_form(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = several(folder, 1), list[str]()
    stop(made, monkeypatch)
    assert run_all(made, told, part_bytes=PART, link=False) == ["baked"]
    assert "the layout has changed" in told[0]
    assert (folder / "base" / VAE).stat().st_nlink == 1
    lorabake = b.header(folder / "out0" / VAE)[1]["lorabake.version"]
    assert lorabake


def stop(made: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a batch as Ctrl-C does, once it has landed some receipts."""
    land, landed = receipts.land, list[int]()

    def failing(*given: object, **others: object) -> object:
        if len(landed) == 3:
            raise KeyboardInterrupt
        landed.append(1)
        return land(*given, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("lorabake.batch.work.land", failing)
        with pytest.raises(KeyboardInterrupt):
            run_all(made, [], part_bytes=PART)


@pytest.mark.parametrize("others", [{"shard": Shard(1, 2)}, {"engine": "ray"}])
def test_several_machines_make_no_links(folder: Path, others: dict[str, object]) -> None:
    with pytest.raises(
        ArgumentError,
        match=r"RunOptions\(link=True\): a link would stop other machines that",
    ):
        run_all(several(folder, 1), [], **others)
    assert not (folder / "out0").exists()


# -- several processes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part_bytes", [PART, 1 << 20])
def test_jobs_link_in_passes_on_one_base(folder: Path, part_bytes: int) -> None:
    """Workers do parts, or passes that are small; each pass reads the base whose links the one before has made."""
    made, told = several(folder), list[str]()
    for _ in range(2):
        assert run_all(made, told, memory=1, jobs=2, part_bytes=part_bytes) == ["baked"] * 3
        assert (folder / "base" / VAE).stat().st_nlink == 4
        made = several(folder, first=0.25)  # in the places of the linked ones
    alone = [b.tree(folder / f"out{number}") for number in range(3)]
    for number in range(3):
        shutil.rmtree(folder / f"out{number}")
    assert run_all(made, told) == ["baked"] * 3
    assert told == []
    assert [b.tree(folder / f"out{number}") for number in range(3)] == alone


def test_workers_link_where_nobody_else_reads_the_base(folder: Path) -> None:
    made, told = several(folder, 4), list[str]()
    for number, copy in ((1, shutil.copy2), (2, os.link), (3, shutil.copy2)):
        shutil.copytree(folder / "base", folder / f"base{number}", copy_function=copy)
        made[number] = made[number].model_copy(
            update={"base": made[number].base.model_copy(update={"path": f"base{number}"})}
        )
    options = BatchOptions(run=RunOptions(link=True))
    chosen = [*passes([linked(plan(each)) for each in made], Limits())]
    assert are_whole(chosen, options) == [False, True, False, True], "the third base has the files of the first"
    assert are_whole(chosen, replace(options, run=RunOptions())) == [True] * 4
    assert are_whole(chosen, replace(options, part_bytes=PART)) == [False] * 4
    assert run_all(made, told, jobs=2) == ["baked"] * 4
    assert told == []
    for number, base in enumerate(["base", "base1", "base2", "base3"]):
        assert (folder / f"out{number}" / VAE).samefile(folder / base / VAE)
        assert (folder / base / VAE).stat().st_nlink == (2 if number % 2 else 4)


def test_a_base_that_changes_stops_jobs_with_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes into the base between two passes, and sets the time of content back, is found out."""
    made, told = several(folder, 2), list[str]()
    vae = folder / "base" / VAE
    status = vae.stat()

    def rewrite(outcome: Outcome) -> None:
        if outcome.name == made[0].name:
            vae.write_bytes(vae.read_bytes()[:-1] + b"x")
            os.utime(vae, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert run_all(made, told, memory=1, jobs=2, ended=rewrite) == ["baked", "failed"]


# -- commands --------------------------------------------------------------------------------------------


def test_commands(folder: Path, cli: Cli) -> None:
    baked = cli("bake", "recipe.yaml", "--link", "--no-fsync", "--provenance")
    assert (baked.code, f"note: linked to the base, not copied: {VAE}" in baked.err) == (0, True)
    assert names(folder) == [VAE]
    edited = cli("metadata", f"out/{VAE}", "--set", "note=x")
    assert edited.code == 2
    assert "has 2 names (hard links), and an edit would show under all of them" in edited.err
    assert cli("card", "out").code == 0
    refused = cli("batch", "recipe.yaml", "--link", "--shard", "1/2")
    assert refused.code == 2
    assert "--link: a link would stop other machines that read the base; leave out --shard 3/8, --eng" in refused.err
    again = cli("batch", "recipe.yaml", "--link")
    assert (again.code, "current" in again.out) == (0, True)
    b.save(folder / "base.safetensors", b.sd1())
    words = ("--base", "base.safetensors", "--lora", "lora.safetensors", "-o", "one.safetensors")
    assert "note: nothing to link: the base is a single file" in cli("bake", *words, "--link", "--no-fsync").err
    b.recipe(folder, output={"path": "two.safetensors"})
    assert "note: nothing to link: the base is a single file (1 output)" in cli("batch", "recipe.yaml", "--link").err
    assert {file.name for file in publication_of(folder / "out").files} >= {VAE}
    strange = folder / "out" / VAE
    strange.unlink()
    b.save(strange, load_file(folder / "base" / VAE), {"of": "somebody"})
    with pytest.raises(FileError, match="has no recipe in its header, so lorabake did not bake it"):
        publication_of(folder / "out")


def test_a_lock_has_the_data_of_links_too(folder: Path) -> None:
    with chdir(folder):
        lock("recipe.yaml")
        bake("recipe.yaml", RunOptions(link=True, locked=True, fsync=False))
        assert bake("recipe.yaml", RunOptions(link=True, locked=True, fsync=False)).is_up_to_date
        bake("recipe.yaml", RunOptions(locked=True, fsync=False))


def test_only_a_link_of_this_process_excuses_a_new_time_of_status(tmp_path: Path) -> None:
    """A program that writes into a file can set the time of its content back, and that of its status not."""
    file = tmp_path / "base.safetensors"
    file.write_bytes(b"content")
    planned = fingerprint(file)
    time.sleep(0.02)
    with known_again(file):
        os.link(file, tmp_path / "link")
    assert after_links(planned) == fingerprint(file) != planned
    time.sleep(0.02)
    os.utime(file, ns=(planned[3], planned[3]))
    assert after_links(planned) != fingerprint(file)
