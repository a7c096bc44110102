"""The benchmarks' own arithmetic, and the script for GPUs on a machine without one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import floor, gpu, inputs, many, rates, run, scale, simulation, units
from benchmarks.measure import Cost, Floor
from lorabake import load_recipe
from lorabake import plan as make_plan
from tests import builders as b
from tests import simulated

ROOT = Path(__file__).resolve().parent.parent


# -- inputs ----------------------------------------------------------------------------------------------


def test_codes_of_float8_are_torchs() -> None:
    values = np.concatenate([b.Values(3)(4096).numpy() * 100, np.array([0.0, 448, -448, 0.001, -0.0009765625 * 1.5])])
    values = values.astype(np.float32)
    right = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    ties = np.abs(inputs.encoded(values).astype(int) - right.astype(int))
    assert int(ties.max()) <= 1
    assert int((ties > 0).sum()) <= 1  # halfway between two, which benchmarks do not care for


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("sd15", "sd15_kinds"):
        inputs.write_set(folder, name, small=True)
    return folder


@pytest.mark.parametrize("name", [name for name in gpu.CASES if name.startswith("sd15")])
def test_every_case_bakes(small: Path, tmp_path: Path, name: str) -> None:
    case = gpu.CASES[name]
    loras = [(small / f"{lora}.safetensors", strength) for lora, strength in case.loras]
    recipe = run.write_recipe(tmp_path / "recipe.yaml", small / f"{case.base}.safetensors", loras, hashed=False)
    result = b.run(recipe)
    assert len(result.computed["cpu"]) > 20
    kinds = {title for ledger in result.plan.ledgers for title in ledger.kinds}
    due = {"dora": {"DoRA"}, "loha": {"LoHa"}}.get(name.split()[-1], {"LoRA"})
    assert kinds == due
    scaled = sum(not weight.codec.is_plain for step in result.plan.steps for weight in step.results)
    assert bool(scaled) is (name.split()[-1] in ("fp8", "int8"))


# -- the floor -------------------------------------------------------------------------------------------


def test_the_work_of_a_plan_is_counted(small: Path, tmp_path: Path) -> None:
    loras = [(small / "sd15_r32a.safetensors", 1.0), (small / "sd15_r128.safetensors", 1.0)]
    plan = make_plan(
        load_recipe(run.write_recipe(tmp_path / "r.yaml", small / "sd15.safetensors", loras, hashed=False))
    )
    work = floor.work_of(plan)
    shapes = [
        module.shape for module in inputs.read_layout("sd15", small=True).modules.values() if module.kind == "lora"
    ]
    assert work.flops == sum(
        2 * shape[0] * (min(32, *shape[:2]) + min(128, *shape[:2])) * shape[1] for shape in shapes
    )
    assert work.written == plan.baked_bytes == sum(2 * shape[0] * shape[1] for shape in shapes)
    assert work.read == work.written + sum(
        info.nbytes for patch in plan.patches for slot, info in patch.tensors.items() if slot != "alpha"
    )
    assert work.copied == plan.copied_bytes
    assert all(rows * columns <= floor.TILE_VALUES for rows, _, columns in work.products)
    found = floor.measure(plan, tmp_path)
    parts = [found.arithmetic, found.conversion, found.reading, found.writing, found.copying]
    assert all(0 < part < 60 for part in parts)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("importing", "copying", "computing", "seconds"),
    [
        (2.0, 0.5, 0.4, 2.4),  # the copy is done before the import is
        (2.0, 3.0, 1.0, 3.5),  # it takes a share of the cores that compute
        (0.1, 9.0, 0.4, 9.0),  # one thread copies
    ],
)
def test_a_floor_overlaps_what_can_overlap(
    importing: float, copying: float, computing: float, seconds: float
) -> None:
    here = Floor(computing / 2, computing / 4, computing / 8, computing / 8, copying, cores=2)
    assert here.seconds(importing) == pytest.approx(seconds)


def test_tables_show_the_share_of_the_floor() -> None:
    costs = {"lorabake": Cost(4.0, 6.0, 200), "cp": Cost(1.0, 1.0, 1), "import torch": Cost(2.0, 2.0, 90)}
    pairs = [run.Pair(costs, Floor(0.5, 0.25, 0.125, 0.125, 0.5, 2))] * 3
    text = "\n".join([*run.table({"sd15+1": pairs}, run.MODES["plain"], peer=False), *run.floors({"sd15+1": pairs})])
    assert "| 3.0 (3.0–3.0) | 75% (75%–75%) | ≥ 60% |" in text
    assert "| 1.33 (1.33–1.33) |" in text
    assert "| sd15+1 | 0.50 | 0.25 | 0.12 | 0.12 | 0.50 | 2.00 |" in text
    slow = [run.Pair({**costs, "lorabake": Cost(9.0, 9.0, 500)}, pairs[0].floor)]
    assert "**33% (33%–33%)**" in "\n".join(run.table({"sd15+1": slow}, run.MODES["plain"], peer=False))
    hashed = [run.Pair({**costs, "sha256sum": Cost(1, 1, 1), "hashlib": Cost(2, 2, 1)})]
    assert "floor" not in "\n".join(run.table({"sd15+1": hashed}, run.MODES["hash"], peer=False))
    assert run.floors({"sd15+1": hashed}) == []
    assert json.loads(run.as_json({"sd15+1": pairs}, "plain"))["pairs"]["sd15+1"][0]["floor"]["seconds"] == 3.0


# -- the script for GPUs -------------------------------------------------------------------------------------


def script(*arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    own = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "LORABAKE_"))}
    path = os.pathsep.join(filter(None, [more.pop("path", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**own, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_a_gpu_the_script_says_so_and_ends(tmp_path: Path) -> None:
    done = script("--work", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("nothing is measured (--device cpu measures the CPU)\n")
    assert list(tmp_path.iterdir()) == []


def test_the_script_measures_the_simulated_device(tmp_path: Path) -> None:
    try:
        backend = simulated.build()
    except simulated.UnavailableError as error:
        pytest.skip(f"no simulated device: {error}")
    figures = tmp_path / "figures.json"
    done = script(
        "--small", "--only", "sd15+3", "--work", tmp_path, "--json", figures, "--minutes", 9, path=str(backend)
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(figures.read_text())
    row = found["rows"]["sd15+3"]
    measured = ("bake s", "warm s", "GB/s", "cp s", "CPU s", "read", "transfer", "compute", "write")
    assert all(row[name] > 0 for name in measured), row
    assert (row["ulp"], row["repeats"]) == (0, True)
    enough = {name: part for name, part in found["rows"].items() if ", " in name}
    assert len(enough) == 8
    assert all(part["repeats"] for part in enough.values())
    assert any("tensors are the CPU's, and the header says so" in note for note in found["notes"])
    assert any("sd15+3: diffusers is not measured" in note for note in found["notes"])
    assert re.search(r"^\| sd15\+3 \| [\d.]+ \|", done.stdout, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def failing(_: gpu.Setting) -> None:
    raise gpu.FailedError("the bus is on fire")


@pytest.fixture
def setting(tmp_path: Path) -> gpu.Setting:
    return gpu.Setting(tmp_path, tmp_path, "cpu", small=True, deadline=time.monotonic() + 60)


def test_what_fails_is_named_and_the_rest_is_measured(
    setting: gpu.Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    def fine(setting: gpu.Setting) -> None:
        setting.row("sd15+1")["warm s"] = 1.5

    gpu.work_through(setting, [gpu.Job("sd15+1", "bake", failing), gpu.Job("sd15+1", "warm", fine)])
    text = "\n".join(gpu.table(setting))
    assert "| sd15+1 | – | 1.50 |" in text
    assert "sd15+1: bake is not measured: the bus is on fire" in text
    assert "sd15+1: warm done in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "limit", "message"),
    [
        ("import time; time.sleep(60)", 0.5, "took longer than 0 s"),
        ("raise ValueError('no')", 30, "exit code 1: ValueError: no"),
        ("import os; os.abort()", 30, "exit code -6: nothing was said"),
        ("print(1)", 0, "no time was left"),
    ],
)
def test_a_process_that_fails_or_hangs_ends(code: str, limit: float, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(gpu.FailedError, match=message):
        gpu.run_child([sys.executable, "-c", code], limit, {})
    assert time.monotonic() - began < 30


def changed(change: Callable[[torch.Tensor], torch.Tensor], tensor: torch.Tensor, folder: Path) -> dict[str, object]:
    paths = [b.save(folder / f"{n}.safetensors", {"w": each}) for n, each in enumerate((tensor, change(tensor)))]
    return gpu.child_compare("cpu", [str(path) for path in paths])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn], ids=str)
def test_distances_are_counted_in_units_of_the_last_place(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, -1.0, 0.0, 2.0]).to(dtype)
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.view(whole) + torch.tensor([3, 1, 0, -2]).to(whole)).view(dtype)

    assert changed(moved, values, tmp_path) == {"ulp": 3, "differ": 0.75}
    assert changed(lambda tensor: tensor, values, tmp_path) == {"ulp": 0, "differ": 0.0}
    smallest = torch.tensor([1]).to(whole).view(dtype)
    assert changed(lambda tensor: (-tensor.float()).to(dtype), smallest, tmp_path) == {"ulp": 2, "differ": 1.0}


# -- many recipes, and many machines -------------------------------------------------------------------------


def test_what_a_batch_reads_of_the_base_is_counted(tmp_path: Path) -> None:
    setting = many.Setting(tmp_path, tmp_path, (sys.executable, "-m", "lorabake"), ("--no-fsync",))
    base, loras = many.write_small(tmp_path / "loras")
    folder = tmp_path / "recipes"
    folder.mkdir()
    for number in range(2):
        many.write_recipe(setting, folder, base, many.Output(f"o{number}", loras[0], 0.5 + number / 4))
    read, _ = many.bytes_of_base(setting, folder, base, 2)
    plan = make_plan(load_recipe(folder / "o0.yaml"))
    size = base.stat().st_size  # a small base is digested, so that the next bake knows it: twice if it is too new
    due = plan.baked_bytes + 2 * plan.copied_bytes
    digests, rest = divmod(read - due, size)
    assert digests in (1, 2)
    assert rest < 2e5 < plan.baked_bytes < size - 2e5, "its header comes on top, and no second reading"


def test_tables_of_many_outputs_divide_within_a_round() -> None:
    costs = {
        "bake 0": Cost(2.0, 3.0, 1),
        "bake 1": Cost(4.0, 5.0, 1),
        "cp 0": Cost(1.0, 1.0, 1),
        "cp 1": Cost(1.0, 1.0, 1),
    }
    costs |= {"batch 1": Cost(2.0, 3.0, 7), "batch 2": Cost(3.0, 4.0, 9, 5_000_000_000, 0)}
    series = many.Series(1000, [costs, costs], {1: 1000, 2: 1500}, {1: 1000, 2: 1010})
    text = "\n".join(many.table({("sd15", "sweep"): series}))
    assert "| sd15 | one, K strengths | 1 | 2.0 (2.0–2.0) | 1.00 (1.00–1.00) | 2.00 (2.00–2.00) |" in text
    row = "| 2 | 3.0 (3.0–3.0) | 0.50 (0.50–0.50) | 1.50 (1.50–1.50) | 4.0 (4.0–4.0) | 0.50 (0.50–0.50) | 9 |"
    assert f"{row} 1.50 | 1.01 |" in text
    small = "\n".join(many.small_table([(Cost(10.0, 8.0, 200), Cost(20.0, 15.0, 180))], 500))
    assert "| 500 × `lorabake bake`, estimated from 20 | 500.0 (500.0–500.0) |" in small
    assert "One process is 50.0 (50.0–50.0) times as fast." in small


UNITS = [simulation.Unit(read=4e9, write=2e9, cpu=3.0, landing=0.1, group=n // 8, joining=0.5) for n in range(24)]
CLUSTER = simulation.Cluster(nodes=4, workers=2, cores=8, nic=2e9, storage_read=5e9, storage_write=4e9, dispatch=0.01)


@pytest.mark.parametrize("dealing", ["queue", "shards"])
@pytest.mark.parametrize("lost", [(), (3.0,), (1.0, 2.0, 8.0)])
def test_no_unit_is_lost_or_done_twice(dealing: simulation.Dealing, lost: tuple[float, ...]) -> None:
    late = [simulation.Unit(read=1e9, cpu=1.0, group=9, after=0, width=1.0, driver=True)] * 3
    cluster = replace(CLUSTER, dealing=dealing, lost=lost, notice=1.0, repair=5.0, slow=0.3, slowness=2.0)
    outcome = simulation.simulate(cluster, [*UNITS, *late])
    assert outcome.done == Counter(range(27))
    again = Counter(outcome.begun) - Counter(outcome.done)
    assert bool(again) is bool(lost)
    assert sum(again.values()) <= 2 * len(lost), "two processes on each lost node"
    assert outcome.done_at[9] > outcome.done_at[0]
    assert outcome == simulation.simulate(cluster, [*UNITS, *late]), "the same seed, the same result"


def test_without_anybody_left_the_simulation_says_so() -> None:
    with pytest.raises(ValueError, match="units have nobody left to do them"):
        simulation.simulate(replace(CLUSTER, nodes=1, lost=(1.0,)), UNITS)


@pytest.mark.parametrize("name", ["storage_read", "storage_write", "nic", "cores"])
def test_more_of_anything_is_never_slower(name: str) -> None:
    plain = simulation.simulate(CLUSTER, UNITS).seconds
    more = replace(CLUSTER, **{name: 2 * getattr(CLUSTER, name)})
    assert simulation.simulate(more, UNITS).seconds <= plain * 1.0001
    assert plain >= scale.least_seconds(CLUSTER, UNITS)


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_equal_units_take_rounds_of_their_time(workers: int) -> None:
    units = [simulation.Unit(cpu=2.0, landing=0.5)] * 10
    outcome = simulation.simulate(simulation.Cluster(nodes=workers), units)
    assert outcome.seconds == pytest.approx(2.5 * -(-10 // workers))


def test_storage_that_all_share_is_the_limit() -> None:
    outcome = simulation.simulate(replace(CLUSTER, nic=1e12, cores=1000), UNITS)
    assert outcome.bottleneck == "storage, reading"
    assert outcome.seconds == pytest.approx(24 * 4e9 / 5e9, rel=0.1)


def test_rates_are_levelled_and_whoever_needs_less_keeps_its_own() -> None:
    rates = simulation.shared(np.array([1.0, 10.0, 10.0, 7.0]), np.array([1.0, 1.0, 0.5, 0.0]), 7.0)
    assert rates.tolist() == [1.0, 4.0, 4.0, 7.0]


def seconds(units: list[simulation.Unit], **settings: float) -> float:
    """Simulate one node."""
    return simulation.simulate(replace(simulation.Cluster(), **settings), units).seconds


@pytest.mark.parametrize(
    ("units", "workers", "due"),
    [
        ([simulation.Unit(cpu=8.0, width=2.0)], 1, 4.0),  # it has no third thread
        ([simulation.Unit(cpu=8.0, last=3.0)], 1, 5.0),  # one core does what comes last
        ([simulation.Unit(cpu=3.0, joining=4.0)], 1, 4.75),  # and what comes first
        ([simulation.Unit(cpu=3.0, width=1.0), simulation.Unit(cpu=9.0)], 2, 3.0),  # the others have what one leaves
        ([simulation.Unit(cpu=2.0, joining=2.0, group=n) for n in range(8)], 8, 8.0),  # eight open passes on four
    ],
)
def test_cores_are_shared_by_those_that_can_use_them(units: list[simulation.Unit], workers: int, due: float) -> None:
    assert seconds(units, workers=workers, cores=4) == pytest.approx(due)


def test_threads_that_wait_for_one_another_leave_cores_idle() -> None:
    wide = [simulation.Unit(cpu=7.0)]
    assert seconds(wide, cores=8, beyond=0.5) == pytest.approx(7.0 / 4.5)
    assert seconds([replace(wide[0], width=1.0)], cores=8, beyond=0.5) == pytest.approx(7.0)


@pytest.mark.parametrize(("gigabytes", "due"), [(3, 3.0), (9, 3.0 + 6 / 0.5)])
def test_memory_takes_what_the_disk_does_not_have_yet(gigabytes: float, due: float) -> None:
    """A writer writes 1 GB/s, the disk takes half of it, and memory holds 1.5 GB: it is full after three seconds."""
    work = [simulation.Unit(write=1e9 * gigabytes, cpu=gigabytes, width=1.0)]
    assert seconds(work, storage_write=0.5e9, behind=1.5e9) == pytest.approx(due)
    assert seconds(work, storage_write=0.5e9, behind=simulation.NEVER) == pytest.approx(gigabytes)
    assert seconds(work, storage_write=0.5e9) == pytest.approx(2 * gigabytes)


KNOWN = rates.Rates(
    **{field.name: 1e9 for field in fields(rates.Rates)} | {"told": 0.0, "overhead": 1.0, "beyond": 1.0}
)
KNOWN = replace(KNOWN, **dict.fromkeys(("command", "start", "first", "plan", "hand_out", "noted"), 0.1))
MANY = units.Batch(units.SDXL, 100, 64, scale.DEFAULT_PART, "pool", 4, 8)


@pytest.mark.parametrize("way", ["command", "pool", "whole", "shards"])
def test_a_batch_is_cut_into_units_that_add_up(way: str) -> None:
    batch = replace(MANY, way="pool", whole=True) if way == "whole" else replace(MANY, way=way)
    found = list(units.units_of(batch, KNOWN, landing=0.0))
    assert batch.passes == [64, 36]
    baking = [unit for unit in found if unit.write]
    assert len(baking) == 2 * (1 if way in ("command", "whole") else batch.parts)
    assert sum(unit.write for unit in found) == pytest.approx(100 * batch.load.base)
    once = 2 * batch.load.base + 100 * batch.load.loras
    assert sum(unit.read for unit in baking) == pytest.approx(once)
    hashed = 1 if way in ("command", "whole") else 2  # for receipts, and as a whole
    work = units.Work(batch.load, 1, KNOWN)
    one = 100 * (work.computing - batch.load.touched / KNOWN.read + work.copying + hashed * work.hashing)
    cpu = sum(unit.cpu + unit.last for unit in found if not unit.driver)
    assert cpu == pytest.approx(one + 2 * batch.load.touched / KNOWN.read, rel=0.05)


def test_files_of_an_output_are_hashed_side_by_side() -> None:
    large = replace(MANY, load=units.LARGE, outputs=1, together=1)
    found = [unit for unit in units.units_of(large, KNOWN, landing=0.0) if unit.read == 5e9]
    assert len(found) == 120
    assert {unit.width for unit in found} == {1.0}
    dealt = [*units.units_of(replace(large, way="shards"), KNOWN, landing=0.0)]
    ends = {unit.group for unit in dealt if unit.after is None}
    assert [unit.after for unit in dealt if unit.after is not None] == sorted(ends), "each after its own parts"


def test_more_processes_are_quicker_where_there_are_cores() -> None:
    fewer = replace(MANY, outputs=8, together=8)
    assert scale.predicted(fewer, 2, 4, KNOWN).seconds < scale.predicted(fewer, 1, 1, KNOWN).seconds


def test_a_real_bake_says_what_single_rates_cannot() -> None:
    load = replace(units.SDXL, files=1)
    one = units.Work(load, 1, KNOWN)
    alone = KNOWN.command + one.planning + one.reserving
    cpu = alone + one.digesting + 1.5 * (one.computing + one.copying + one.hashing)
    found = scale.fitted(KNOWN, load, cpu, alone + (cpu - alone) / 1.6)
    assert found.overhead == pytest.approx(1.5)
    more = len(os.sched_getaffinity(0)) - 1
    assert found.beyond == pytest.approx(0.6 / more if more else 1.0)


def test_rates_are_measured(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "REPEATS", 1)
    base, lora = small / "sd15.safetensors", small / "sd15_r32a.safetensors"
    recipe = run.write_recipe(tmp_path / "r.yaml", base, [(lora, 1.0)], hashed=True)
    found = rates.measure(base, recipe, tmp_path)
    assert all(value > 0 for value in found.as_json().values())
    assert found.start > found.command, "who bakes has imported torch"
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_a_file_system_in_memory_has_no_disk_to_wait_for(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if memory.is_dir() and memory.is_mount():
        assert scale.unwritten_most(memory) == simulation.NEVER
    assert scale.unwritten_most(tmp_path.resolve()) > 0
