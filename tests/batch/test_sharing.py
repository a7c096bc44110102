"""Shards of a batch, each a process, in any order or at once, killed, late: the bytes are those of single bakes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from lorabake import RunOptions, bake, load_recipe
from lorabake.cli import lorabake
from tests import builders as b
from tests.batch.crowd import Crowd, Ended, Run, crowd_in
from tests.batch.sweep import empty, make_sweep, outputs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")

IN_PARTS = """
    import functools, lorabake.cli.batch as command
    command.BatchOptions = functools.partial(command.BatchOptions, part_bytes=6_000)
    import lorabake.batch.groups as groups
    groups.HASHED = 0
"""
"""A part is small, so that the base of the tests has several, and shards do the parts of a pass together."""

AT = """
    import os, signal
    import lorabake.batch.joining as joining, lorabake.batch.work as work, lorabake.baking as baking
    import lorabake.writing.output as output, lorabake.writing.commit as commit, lorabake.writing.weights as weights
    import lorabake.writing.claim as claim, lorabake.writing.sharing as sharing, lorabake.batch.notes as notes

    def at(module, name, number, then, on=False):
        genuine, calls = getattr(module, name), []
        def counted(*words, **named):
            calls.append(name)
            if len(calls) == number or on and len(calls) > number:
                then()
            return genuine(*words, **named)
        setattr(module, name, counted)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def read_only():
        raise OSError(30, "Read-only file system")
"""
"""Do something before a function is called for the so-manieth time; with `on`, each time from then on."""

HELD = """
    import json
    def held():
        from pathlib import Path
        paths = Path("out").absolute().glob("*.partial/receipts/*.json")
        found = {str(path): path.stat().st_mtime_ns for path in paths}
        Path("seen.json").write_text(json.dumps(found))
    at(baking, "bake_pass", 1, held)
    joining.bake_pass = baking.bake_pass
"""
"""Write down the receipts that are there before the first output is completed."""


TWO = ("--only", "*-1")
"""Two of the six outputs, to save time."""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    with crowd_in(tmp_path_factory.mktemp("crowd")) as running:
        yield running


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    return folder, make_sweep(folder)


@pytest.fixture
def folder(made: tuple[Path, dict[str, bytes]]) -> Path:
    empty(made[0])
    return made[0]


@pytest.fixture
def alone(made: tuple[Path, dict[str, bytes]]) -> dict[str, bytes]:
    return made[1]


def shard(folder: Path, text: str, *words: str, before: str = IN_PARTS) -> Run:
    line = ["batch", "sweep.yaml", "--device", "cpu", "--no-fsync", "--workers", "1", "--shard", text, *words]
    return Run(line, folder, {}, before)


def two(alone: dict[str, bytes]) -> dict[str, bytes]:
    """Return the two outputs that TWO chooses, as single bakes make them."""
    return {name: content for name, content in alone.items() if name.endswith("-1.safetensors")}


def codes(ended: list[Ended]) -> list[int]:
    return [each.code for each in ended]


def receipts(folder: Path) -> dict[str, int]:
    """Return the receipts that landed, with their times."""
    return {str(path): path.stat().st_mtime_ns for path in (folder / "out").glob("*.partial/receipts/*.json")}


def statuses(ended: Ended) -> dict[str, str]:
    document = json.loads(ended.text[ended.text.index("{\n") :])
    return {output["name"]: output["status"] for output in document["outputs"]}


def test_shards_at_once_make_the_bytes_of_single_bakes(crowd: Crowd, folder: Path, alone: dict[str, bytes]) -> None:
    ended = crowd.run(*(shard(folder, f"{number}/3") for number in (1, 2, 3)))
    assert codes(ended) == [0, 0, 0], ended
    assert outputs(folder) == alone


def test_shards_one_after_the_other_in_any_order(crowd: Crowd, folder: Path, alone: dict[str, bytes]) -> None:
    told = [crowd.run(shard(folder, f"{number}/3", "--json", *TWO))[0] for number in (3, 1, 2)]
    assert codes(told) == [0, 0, 0], told
    assert outputs(folder) == two(alone)
    assert [{*statuses(each).values()} for each in told] == [{"waiting"}, {"waiting"}, {"baked"}]
    late = crowd.run(shard(folder, "2/3", "--json", *TWO))[0]
    assert (late.code, {*statuses(late).values()}) == (0, {"current"})
    assert outputs(folder) == two(alone)


def test_one_that_comes_late_on_another_machine_is_content(
    crowd: Crowd, folder: Path, alone: dict[str, bytes]
) -> None:
    """That machine has no receipt of the bake in the user's cache."""
    ended = crowd.run(shard(folder, "1/1", *TWO))
    assert codes(ended) == [0], ended
    before = (
        IN_PARTS
        + """
    import lorabake.artifacts.receipts as kept
    kept.find = lambda paths: None
"""
    )
    (late,) = crowd.run(shard(folder, "2/2", "--json", *TWO, before=before))
    assert (late.code, {*statuses(late).values()}) == (0, {"current"}), late
    (folder / "base.safetensors").touch()
    (changed,) = crowd.run(shard(folder, "1/1", "--json", *TWO, before=before))
    assert {*statuses(changed).values()} == {"baked"}, "nothing tells whether it is of this base"
    assert outputs(folder) == two(alone)


def test_a_single_shard_is_a_batch(crowd: Crowd, folder: Path, alone: dict[str, bytes]) -> None:
    (ended,) = crowd.run(shard(folder, "1/1", "--json"))
    assert {*statuses(ended)} == {name.removesuffix(".safetensors") for name in alone}
    assert (ended.code, {*statuses(ended).values()}) == (0, {"baked"})
    assert outputs(folder) == alone


@pytest.mark.parametrize(
    "where",
    [
        'at(work, "land_all", 2, die)',
        'at(joining.Member, "_make", 1, die)',
        'at(sharing, "rename_new", 1, die)',
    ],
)
def test_a_killed_shard_is_repeated_alone(crowd: Crowd, folder: Path, alone: dict[str, bytes], where: str) -> None:
    (killed,) = crowd.run(shard(folder, "2/3", *TWO, before=IN_PARTS + AT + f"\n    {where}"))
    assert killed.code == -9, killed
    landed = receipts(folder)
    assert bool(landed) == ("land_all" in where)
    others = crowd.run(*(shard(folder, f"{number}/3", *TWO) for number in (1, 3)))
    assert codes(others) == [0, 0], others
    assert not any(path.suffix == ".safetensors" for path in (folder / "out").iterdir())
    assert landed.items() <= receipts(folder).items(), "what has a receipt is not done again"
    (again,) = crowd.run(shard(folder, "2/3", *TWO))
    assert again.code == 0, again
    assert outputs(folder) == two(alone)


@pytest.mark.parametrize(
    "where",
    [
        'at(output, "commit", 1, die)',
        'at(commit.Move, "do", 2, die)',
        'at(output.Partial, "clean", 1, die)',
    ],
)
def test_a_shard_that_is_killed_while_it_completes_is_followed_by_another(
    crowd: Crowd, folder: Path, alone: dict[str, bytes], where: str
) -> None:
    first = crowd.run(shard(folder, "1/2", *TWO))
    assert codes(first) == [0], first
    (last,) = crowd.run(shard(folder, "2/2", *TWO, before=IN_PARTS + AT + f"\n    {where}"))
    assert last.code == -9
    assert outputs(folder) != two(alone)
    (other,) = crowd.run(shard(folder, "1/2", *TWO))
    assert other.code == 0, other
    assert outputs(folder) == two(alone)


@pytest.mark.parametrize(
    "where",
    [
        'at(sharing, "begin", 1, read_only, on=True)',
        'at(weights, "write_all", 5, read_only, on=True)',
        'at(notes, "open_new", 2, read_only, on=True)',
        'at(output, "commit", 1, read_only, on=True)',
    ],
)
def test_storage_that_becomes_read_only_loses_nothing(
    crowd: Crowd, folder: Path, alone: dict[str, bytes], where: str
) -> None:
    """The exit code says that the machine failed; what has landed stays, and the same command goes on."""
    (failed,) = crowd.run(shard(folder, "1/1", *TWO, before=IN_PARTS + AT + f"\n    {where}"))
    assert failed.code == 3, failed
    assert "cannot write there: Read-only file system" in failed.text
    assert "Traceback" not in failed.text
    landed = receipts(folder)
    (again,) = crowd.run(shard(folder, "1/1", *TWO, before=IN_PARTS + AT + HELD))
    assert again.code == 0, again
    assert outputs(folder) == two(alone)
    assert landed.items() <= json.loads((folder / "seen.json").read_text()).items()


def test_a_file_system_without_locks(crowd: Crowd, folder: Path, alone: dict[str, bytes]) -> None:
    without = """
    import fcntl
    def flock(fd, operation):
        raise OSError(37, "No locks available")
    fcntl.flock = flock
"""
    first = crowd.run(shard(folder, "1/2", *TWO, before=IN_PARTS + without))
    assert codes(first) == [0], first
    (plain,) = crowd.run(Run(["bake", "one.yaml", "--device", "cpu"], folder, {}, without))
    assert plain.code == 2
    assert "this file system has no locks: another bake may be writing this target" in plain.text
    ended = crowd.run(*(shard(folder, f"{number}/2", *TWO, before=IN_PARTS + without) for number in (2, 1)))
    assert codes(ended) == [0, 0], ended
    assert outputs(folder) == two(alone)


def test_a_bake_onto_an_output_that_shards_make_is_refused(
    crowd: Crowd, folder: Path, alone: dict[str, bytes]
) -> None:
    bake = """
    def bake():
        import lorabake
        try:
            lorabake.bake("one.yaml")
        except lorabake.LorabakeError as error:
            print("refused:", error)
    at(work, "land_all", 2, bake)
"""
    ended = crowd.run(*(shard(folder, f"{number}/2", *TWO, before=IN_PARTS + AT + bake) for number in (1, 2)))
    assert codes(ended) == [0, 0], ended
    for each in ended:
        assert "refused: " in each.text
        assert "one-1.safetensors.partial: another bake is writing this target" in each.text
    assert outputs(folder) == two(alone)


def test_what_a_batch_left_is_shared(crowd: Crowd, folder: Path, alone: dict[str, bytes]) -> None:
    """A batch without shards was killed; and one without shards completes what shards left."""
    line = ["batch", "sweep.yaml", "--device", "cpu", "--no-fsync", *TWO]
    killed = """
    import lorabake.batch.restart as restart
    at(restart, "land_all", 2, die)
"""
    (batch,) = crowd.run(Run(line, folder, {}, IN_PARTS + AT + killed))
    assert batch.code == -9
    landed = receipts(folder)
    assert landed
    first = crowd.run(shard(folder, "1/2", *TWO))
    assert codes(first) == [0], first
    assert landed.items() <= receipts(folder).items()
    (rest,) = crowd.run(Run(line, folder, {}, IN_PARTS))
    assert rest.code == 0, rest
    assert outputs(folder) == two(alone)


def test_a_target_that_is_there_is_replaced_on_request_alone(
    crowd: Crowd, folder: Path, alone: dict[str, bytes]
) -> None:
    old = folder / "out" / "one-1.safetensors"
    shutil.copy(folder / "other.safetensors", old)
    refused = crowd.run(shard(folder, "1/1", *TWO))[0]
    assert refused.code == 1
    assert "one-1.safetensors: exists and holds something else" in refused.text
    assert old.read_bytes() == (folder / "other.safetensors").read_bytes()
    ended = crowd.run(*(shard(folder, f"{number}/2", "--overwrite", *TWO) for number in (1, 2)))
    assert codes(ended) == [0, 0], ended
    assert outputs(folder) == two(alone)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "9/8"], "shard 9/8: there is no such shard"),
        (["--shard", "auto"], "no scheduler says which shard this is"),
        (["--shard", "1/2", "--force"], "--force and --shard"),
        (["--shard", "1/2", "--jobs", "2"], "a shard is done in one process"),
        (["--shard", "1/2", "--link"], "a link would stop other machines"),
    ],
)
def test_a_wrong_shard_is_refused(folder: Path, words: list[str], message: str) -> None:
    told = CliRunner(env={"SLURM_PROCID": "", "RANK": ""}).invoke(
        lorabake, ["batch", str(folder / "sweep.yaml"), *words]
    )
    assert message in str(told.exception) + told.output
    assert not [*(folder / "out").iterdir()]


def test_shards_make_a_folder(crowd: Crowd, tmp_path: Path) -> None:
    """With files of several networks, their configurations, and learned embeddings beside it."""
    b.sd1_folder(tmp_path / "base")
    embedding = {"bundle_emb.word.clip_l": torch.full((1, b.TEXT), 0.5)}
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.save(tmp_path / "lora.safetensors", load_file(tmp_path / "lora.safetensors") | embedding)
    recipe = b.recipe(tmp_path, base="base", output={"path": "out/made"}).rename(tmp_path / "sweep.yaml")
    bake(load_recipe(recipe), RunOptions(device="cpu", workers=1, fsync=False))
    alone = b.tree(tmp_path / "out")
    assert len(alone) > 5
    empty(tmp_path)
    ended = crowd.run(*(shard(tmp_path, f"{number}/3") for number in (1, 2, 3)))
    assert codes(ended) == [0, 0, 0], ended
    assert b.tree(tmp_path / "out") == alone
