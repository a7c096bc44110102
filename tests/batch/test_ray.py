"""Ray: a real cluster of two nodes on this machine, one of which is killed in the middle of the work.

The nodes have addresses of their own on the loopback, so that nothing leaves the machine. A head without cores starts
them and is the driver's own node.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorabake.batch import BatchOptions, bake_all
from lorabake.batch.engines import Ended, Retries, Telling
from lorabake.batch.engines.cluster import STORAGE, Demand, joined
from lorabake.batch.engines.dealing import deal
from lorabake.batch.engines.ray import RayTasks
from lorabake.batch.engines.sight import MARKER, Places
from lorabake.errors import FileError, SurroundingsError
from lorabake.options import RunOptions
from lorabake.progress import unseen
from lorabake.recipe import load_recipes
from tests.batch.pieces import Piece, noted_runs
from tests.batch.sweep import folder as folder  # a fixture
from tests.batch.sweep import made as made  # a fixture
from tests.batch.sweep import outputs

if sys.platform != "linux":
    pytest.skip("needs Linux: other systems have one loopback address", allow_module_level=True)

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

ROOT = Path(__file__).parents[2]
SOON = Retries((0.0, 0.0))
STORE = 80 << 20
"""Bytes of each node's object store."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    os.environ["PYTHONPATH"] = str(ROOT)  # the nodes find the tests, too
    soon = {"health_check_period_ms": 1000, "health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}
    own = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": "127.0.0.2", "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args={**own, "object_store_memory": STORE})
    cluster.add_node(num_cpus=2, object_store_memory=STORE, node_ip_address="127.0.0.3")
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def second(cluster: Cluster) -> Any:
    """Add a second node with cores. The last test that takes it kills it."""
    return cluster.add_node(num_cpus=2, object_store_memory=STORE, node_ip_address="127.0.0.4")


def driver(cluster: Cluster) -> AbstractContextManager[Any]:
    """Join the cluster as its driver."""
    return joined(cluster.address, None)


def run(pool: RayTasks, pieces: Sequence[Piece]) -> dict[str, Ended]:
    waiting = [*pieces]
    return {each.work.name: each for each in deal(pool, lambda: waiting.pop(0) if waiting else None, SOON)}


class Stores(threading.Thread):
    """Watch how many bytes of the nodes' object stores are taken, while a driver is connected."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over, self.most, self.looks = threading.Event(), 0.0, 0

    def __enter__(self) -> Stores:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()

    def run(self) -> None:
        name = "object_store_memory"
        while not self.over.wait(0.1):
            if not ray.is_initialized():
                continue
            total, free = ray.cluster_resources().get(name, 0.0), ray.available_resources().get(name, 0.0)
            self.most, self.looks = max(self.most, total - free), self.looks + 1


def test_pieces_spread_over_the_nodes_and_the_object_store_stays_empty(
    cluster: Cluster, second: Any, tmp_path: Path
) -> None:
    counts: list[int] = []
    warnings: list[str] = []
    pieces = [Piece(tmp_path, f"p{number}") for number in range(6)]
    pieces += [Piece(tmp_path, "dies", "die"), Piece(tmp_path, "fails", "fail"), Piece(tmp_path, "warns", "warn")]
    pieces += [Piece(tmp_path, "pauses", "pause")]
    places = Places((tmp_path, tmp_path / "new"), (Path(__file__),))
    with driver(cluster), RayTasks(ray, Demand(), places, Telling(counts.append, warnings.append)) as pool:
        assert pool.slots == 4
        with Stores() as stores:
            ended = run(pool, pieces)
            assert stores.looks > 5
            assert stores.most == 0
            held = ray.put(bytes(1 << 20))  # this is seen
            time.sleep(1)
            del held
        assert stores.most >= 1 << 20
    assert isinstance(ended["fails"].error, FileError)
    assert [name for name, each in ended.items() if each.error is not None] == ["fails"]
    assert len({each.result for each in ended.values()}) >= 2
    assert Counter(file.stem for file in tmp_path.glob("*.*")) == {**dict.fromkeys(ended, 1), "dies": 2}
    assert sum(counts) == 10 * 7
    assert warnings == ["RunOptions(overwrite=True) is an option"]
    assert not [*tmp_path.rglob(f"{MARKER}*")]


def test_a_node_that_does_not_see_the_output_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(f"/proc/self/cwd/{tmp_path.name}")  # another folder in each process
    monkeypatch.chdir(tmp_path.parent)
    places = Places((tmp_path, own), ())
    with (
        driver(cluster),
        pytest.raises(SurroundingsError, match=f"^node 127.0.0.[34]: does not see {own} as this machine does\n"),
        RayTasks(ray, Demand(), places, Telling()),
    ):
        pass
    assert not [*tmp_path.rglob(f"{MARKER}*")]


def test_a_node_that_lacks_an_input_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    places = Places((tmp_path,), (Path("/proc/self/cwd/base.safetensors"),))
    with (
        driver(cluster),
        pytest.raises(SurroundingsError, match=r"base\.safetensors: node 127\.0\.0\.[34] does not have it\n"),
        RayTasks(ray, Demand(), places, Telling()),
    ):
        pass


def test_a_cluster_without_such_a_node_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    words = r"^no node of the cluster has what a piece of work takes: 3 CPUs, 1 GPU\n"
    with (
        driver(cluster),
        pytest.raises(SurroundingsError, match=words),
        RayTasks(ray, Demand(cpus=3, gpus=1), Places((tmp_path,), ()), Telling()),
    ):
        pass


def sweep(cluster: Cluster, folder: Path, progress: Callable[[int], None] = unseen, jobs: int | None = None) -> None:
    """Bake the sweep on the cluster, its base in several parts."""
    run = RunOptions(device="cpu", workers=1, fsync=False, progress=progress)
    options = BatchOptions(run=run, part_bytes=4000, engine="ray", address=cluster.address, jobs=jobs)
    outcomes = bake_all(load_recipes(folder / "sweep.yaml"), options)
    assert [(outcome.status, outcome.error) for outcome in outcomes] == [("baked", None)] * 6


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_batch_writes_the_bytes_of_single_bakes(
    cluster: Cluster, second: Any, folder: Path, made: tuple[Path, dict[str, bytes]], jobs: int
) -> None:
    with Stores() as stores:
        sweep(cluster, folder, jobs=jobs)
    assert outputs(folder) == made[1]
    assert stores.looks > 5
    assert stores.most == 0
    assert set(noted_runs(folder).values()) == {1}


def test_a_killed_node_loses_nothing(
    cluster: Cluster, second: Any, folder: Path, made: tuple[Path, dict[str, bytes]]
) -> None:
    def kill(count: int) -> None:
        if count and second in cluster.worker_nodes:
            cluster.remove_node(second, allow_graceful=False)  # kills its processes

    sweep(cluster, folder, kill)
    assert second not in cluster.worker_nodes
    assert outputs(folder) == made[1]
    parts = noted_runs(folder)
    assert len(parts) > 4
    assert sum(parts.values()) <= len(parts) + 2, "what was under way on the killed node: it has two cores"


def processes_with(variable: str) -> list[int]:
    """List the processes of this machine whose environment has a variable with this value."""
    numbers = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                numbers.append(int(process.name))
    return numbers


def test_the_command_starts_a_cluster_that_ends_with_it(
    folder: Path, made: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    words = ["batch", "sweep.yaml", "--engine", "ray", "--jobs", "2", "--memory", "1MB", "--device", "cpu"]
    mark = f"LORABAKE_TEST={tmp_path}"
    name, _, value = mark.partition("=")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), name: value}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "lorabake", *words]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "6 outputs on 1 base, in 6 passes; 2 jobs with 1 worker and " in ended.stderr
    assert " of memory each on Ray\n" in ended.stderr
    assert [line.split()[0] for line in ended.stdout.splitlines()[:-1]] == ["baked"] * 6
    assert outputs(folder) == made[1]
    until = time.monotonic() + 10
    while processes_with(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes_with(mark)


def test_a_share_of_storage_is_asked_for_where_nodes_have_it() -> None:
    demand = Demand(cpus=2, memory=1 << 30, storage=True)
    node = {"CPU": 16.0, "memory": 20.0 * (1 << 30), STORAGE: 3.0}
    assert demand.options()["resources"] == {STORAGE: 1}
    assert demand.fits(node) == 3
    assert replace(demand, storage=False).fits(node) == 8
    assert demand.fits({**node, STORAGE: 0}) == 0


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "127.0.0.1:1: no cluster answers there: Connection refused"),
        ("ray://127.0.0.1:10001", "ray://127.0.0.1:10001: is the address of Ray's client"),
        ("nowhere.invalid:6379", "nowhere.invalid:6379: no cluster answers there: "),
    ],
)
def test_an_address_without_a_cluster_is_told_at_once(address: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(SurroundingsError) as told, joined(address, None):
        pass
    assert told.value.lines[0].startswith(words)
    assert time.monotonic() - began < 10
