"""Every adapter kind with shapes, dtypes, values and settings that it should not have: baked, or refused."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorabake.baking import bake, plan
from lorabake.matching.names import BaseNames
from lorabake.options import RunOptions
from lorabake.recipe import load_recipe
from lorabake.tensors.dtypes import DTYPES, nbytes
from tests import builders as b
from tests.tables import infos
from tests.test_matching import made_for, matched, source
from tests.test_shapes import FORMS, Form
from tests.torture.conftest import Tally
from tests.torture.fuzzing import NUMBERS, outcome, seeds

Make = Callable[[str, str], Tally]
Effort = Callable[[object, object], object]
Entry = tuple[str, tuple[int, ...], bytes]

PROMISE = "a bake, or one error that says what is wrong; nothing else, and no target"
FLOATS = {"F32": "<f4", "F64": "<f8", "F16": "<f2"}
INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "u1"}
ODD = (0, -1, 1, 7, 1000, 2**15 - 1, -(2**15))
SETTINGS = (
    "r", "lora_alpha", "alpha", "scaling", "bias", "target_modules", "modules_to_save", "rank_pattern",
    "alpha_pattern", "init_lora_weights", "use_dora", "use_rslora", "peft_version", "peft_type", "task_type",
    "target_parameters", "fan_in_fan_out", "block_size", "random_loc_seed", "token_indices",
)  # fmt: skip
VALUES = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e38, -1e38, 1e-45, -1.0)


def filled(entry: object, rng: np.random.Generator) -> Entry:
    """Give a form's tensor values that a right file may have: small ones, and places that exist everywhere."""
    dtype, shape = entry if isinstance(entry, list) else ("F32", entry)  # type: ignore[misc]
    shape = tuple(shape)
    if dtype in INTEGERS:
        return dtype, shape, (np.arange(prod(shape)) % 8).reshape(shape).astype(INTEGERS[dtype]).tobytes()
    return dtype, shape, (rng.standard_normal(shape) * 0.1).astype(FLOATS[dtype]).tobytes()


def write(path: Path, tensors: Mapping[str, Entry]) -> None:
    """Write a SafeTensors file of whatever dtypes, by hand."""
    header, place = {}, 0
    for key, (dtype, shape, raw) in tensors.items():
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + len(raw)]}
        place += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values()))


class Case:
    """Hold a right LoRA of a form, and change it."""

    def __init__(self, name: str, form: Form) -> None:
        self.name, self.form = name, form
        rng = np.random.default_rng(0)
        self.tensors = {key: filled(entry, rng) for key, entry in form.tensors.items()}
        for key in (each for each in self.tensors if each.endswith("bias_size")):  # a weight's own, as a matrix
            (rows, *columns), dtype = form.base["layer.weight"], self.tensors[key][0]  # type: ignore[misc]
            self.tensors[key] = dtype, (2,), np.array([rows, prod(columns)], INTEGERS[dtype]).tobytes()
        for key in (each for each in self.tensors if each.endswith("on_input")):
            dtype, shape, _ = self.tensors[key]
            kind = {**FLOATS, **INTEGERS}[dtype]
            self.tensors[key] = dtype, shape, np.full(shape, "inputs" in name).astype(kind).tobytes()
        self.config = None if form.config is None else dict(form.config)

    def changed(self, rng: random.Random) -> tuple[dict[str, Entry], dict[str, object] | None, str]:
        tensors, config, told = dict(self.tensors), deepcopy(self.config), []
        for _ in range(rng.choice((1, 1, 1, 2))):
            key = rng.choice([*tensors]) if tensors else ""
            ways = [self._shape, self._dtype, self._value, self._values, self._drop, self._rename, self._double]
            way = rng.choice(ways if config is None else [*ways, self._setting, self._setting])
            if way == self._setting:
                assert config is not None
                told.append(self._setting(config, rng))
            elif key:
                told.append(way(tensors, key, rng))  # type: ignore[arg-type]
        return tensors, config, "; ".join(told)

    @staticmethod
    def _shape(tensors: dict[str, Entry], key: str, rng: random.Random) -> str:
        dtype, shape, raw = tensors[key]
        sides = list(shape)
        match rng.randrange(5):
            case 0 if sides:
                sides[rng.randrange(len(sides))] = rng.choice((0, 1, 2, 3, 33, 1000))
            case 1 if sides:
                del sides[rng.randrange(len(sides))]
            case 2:
                sides.insert(rng.randrange(len(sides) + 1), rng.choice((1, 2)))
            case 3:
                sides.reverse()
            case 4:
                sides = [rng.choice((1, 2, 4)) for _ in range(rng.randrange(7))]
        dtype = dtype if DTYPES[dtype].bits >= 8 else "U8"
        size = nbytes(dtype, sides)
        tensors[key] = dtype, tuple(sides), (raw * (size // max(1, len(raw)) + 1))[:size].ljust(size, b"\1")
        return f"{key} is {sides}"

    @staticmethod
    def _dtype(tensors: dict[str, Entry], key: str, rng: random.Random) -> str:
        _, shape, raw = tensors[key]
        dtype = rng.choice([*DTYPES])
        try:
            size = nbytes(dtype, shape)
        except ValueError:
            return "nothing"
        tensors[key] = dtype, shape, (raw * (size // max(1, len(raw)) + 1))[:size].ljust(size, b"\1")
        return f"{key} is {dtype}"

    @staticmethod
    def _value(tensors: dict[str, Entry], key: str, rng: random.Random) -> str:
        dtype, shape, raw = tensors[key]
        kind = FLOATS.get(dtype) or INTEGERS.get(dtype)
        if kind is None or not raw:
            return "nothing"
        values = np.frombuffer(raw, kind).copy()
        value = rng.choice(VALUES if dtype in FLOATS else ODD)
        with np.errstate(all="ignore"):
            values[rng.randrange(len(values))] = np.array(value).astype(kind)
        tensors[key] = dtype, shape, values.tobytes()
        return f"{key} holds {value}"

    @staticmethod
    def _values(tensors: dict[str, Entry], key: str, rng: random.Random) -> str:
        dtype, shape, _ = tensors[key]
        kind = FLOATS.get(dtype) or INTEGERS.get(dtype)
        if kind is None:
            return "nothing"
        value = rng.choice(VALUES if dtype in FLOATS else ODD)
        with np.errstate(all="ignore"):
            tensors[key] = dtype, shape, np.full(shape, np.array(value).astype(kind), kind).tobytes()
        return f"{key} is all {value}"

    @staticmethod
    def _drop(tensors: dict[str, Entry], key: str, rng: random.Random) -> str:
        del tensors[key]
        return f"no {key}"

    @staticmethod
    def _rename(tensors: dict[str, Entry], key: str, rng: random.Random) -> str:
        parts = key.split(".")
        at = rng.randrange(len(parts))
        parts[at] = rng.choice(("", "0", "weight", "fc", "norm", "base_layer", "alpha", "bias", "é", parts[0]))
        tensors[".".join(parts)] = tensors.pop(key)
        return f"{key} is called {'.'.join(parts)}"

    def _double(self, tensors: dict[str, Entry], key: str, rng: random.Random) -> str:
        donor = CASES[rng.choice([*CASES])]
        other = rng.choice([*donor.tensors])
        tensors[other] = donor.tensors[other]
        return f"beside it {other}"

    @staticmethod
    def _setting(config: dict[str, object], rng: random.Random) -> str:
        name = rng.choice([*config, *SETTINGS])
        value = deepcopy(rng.choice(NUMBERS))
        match rng.randrange(4):
            case 0 if isinstance(config.get(name), dict) and config[name]:
                inner = config[name]
                assert isinstance(inner, dict)
                inner[rng.choice([*inner])] = value
                return f"{name} has {value!r:.40}"
            case 1 if name in config:
                del config[name]
                return f"no {name}"
            case 2:
                value = {rng.choice(("fc", ".*", "(", "norm", "")): value}
        config[name] = value
        return f"{name} = {value!r:.40}"


CASES = {name: Case(name, form) for name, form in FORMS.items()}


class Bench:
    """Keep a folder where a changed LoRA is tried against its base."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bases: dict[str, str] = {}

    def try_out(
        self, case: Case, tensors: Mapping[str, Entry], config: object, must_bake: bool = False, **fields: object
    ) -> str:
        """Plan, bake and look at what is left; return what went wrong, "" for nothing."""
        shapes = json.dumps({key: list(shape) for key, shape in case.form.base.items()})  # type: ignore[call-overload]
        if shapes not in self._bases:
            self._bases[shapes] = f"base{len(self._bases)}.safetensors"
            rng = np.random.default_rng(1)
            write(self.folder / self._bases[shapes], {key: filled(each, rng) for key, each in case.form.base.items()})
        name = "adapter_model.safetensors" if config is not None else "lora.safetensors"
        write(self.folder / name, tensors)
        said = self.folder / "adapter_config.json"
        for other in {"adapter_model.safetensors", "lora.safetensors", said.name} - {name}:
            (self.folder / other).unlink(missing_ok=True)
        if config is not None:
            said.write_text(json.dumps(config))
        fields = dict(fields)
        entry = {"path": name} | ({"semantics": fields.pop("semantics")} if "semantics" in fields else {})
        path = b.recipe(self.folder, base=self._bases[shapes], loras=[entry], **fields)
        target = self.folder / "out.safetensors"
        done: list[bool] = []

        def run() -> None:
            made = plan(load_recipe(path))
            bake(made, RunOptions(device="cpu", workers=1, fsync=False, overwrite=True))
            done.append(True)

        told = outcome(run) or ("was refused" if must_bake and not done else "")
        left = {each.name for each in self.folder.iterdir()} - {*self._bases.values(), name, said.name, path.name}
        target.unlink(missing_ok=True)
        if not told and left != ({target.name} if done else set()):
            told = f"leaves {sorted(left)}"
        return told


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what prepares a whole bake for several threads."""
    monkeypatch.setattr("lorabake.execution.device.call_first", lambda *_, **__: None)


def test_right_files_are_baked(effort: Effort, tmp_path: Path) -> None:
    """The forms that are changed below are right before they are: what is refused there is refused for the change."""
    bench = Bench(tmp_path)
    for case in [*CASES.values()][:: effort(6, 1)]:  # type: ignore[misc]
        assert bench.try_out(case, case.tensors, case.config, must_bake=True) == "", case.name


@cache
def matcher(base: str) -> BaseNames:
    return made_for(infos(json.loads(base)))


def test_every_kind_is_planned_or_refused(tally: Make, effort: Effort) -> None:
    """Without files: what a plan makes of names, shapes, dtypes and settings."""
    counted = tally("LoRAs of every kind with changed shapes, dtypes, values and settings", PROMISE)
    names = [*CASES]
    for number, rng in enumerate(seeds(600, effort(None, 60.0))):  # type: ignore[arg-type]
        case = CASES[names[number % len(names)]]
        tensors, config, what = case.changed(rng)
        headers = infos({key: [dtype, list(shape)] for key, (dtype, shape, _) in tensors.items()})
        base = json.dumps({key: list(shape) for key, shape in case.form.base.items()})  # type: ignore[call-overload]

        def match(headers: Any = headers, config: Any = config, base: str = base) -> None:
            matched(matcher(base), source(headers, config=config))

        told = outcome(match)
        counted.hold(not told, f"{case.name}, seed {number}: {what}: {told}")


def attack(counted: Tally, folder: Path, short: int, seconds: float | None, **fields: object) -> None:
    bench = Bench(folder)
    names = [*CASES]
    for number, rng in enumerate(seeds(short, seconds)):
        case = CASES[names[number % len(names)]]
        tensors, config, what = case.changed(rng)
        told = bench.try_out(case, tensors, config, **fields)
        counted.hold(not told, f"{case.name}, seed {number}: {what}: {told}")


@pytest.mark.filterwarnings("error")
def test_every_kind_with_changed_tensors_and_settings(tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally("LoRAs of every kind with changed shapes, dtypes, values and settings", PROMISE)
    attack(counted, tmp_path, 24, effort(None, 60.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"method": {"name": "svd", "rank": 2}},
        {"method": {"name": "ties", "density": 0.5}},
        {"method": {"name": "dare", "density": 0.5, "seed": 1}},
        {"compute_dtype": "float64", "output": {"dtype": "bfloat16"}},
        {"semantics": "peft"},
        {"compose": "sequential"},
    ],
    ids=lambda fields: re.sub(r"\W+", "-", str(fields)),
)
def test_the_same_by_other_ways_of_baking(
    tally: Make, effort: Effort, tmp_path: Path, fields: dict[str, object]
) -> None:
    counted = tally("LoRAs of every kind with changed shapes, dtypes, values and settings", PROMISE)
    attack(counted, tmp_path, 5, effort(None, 10.0), **fields)  # type: ignore[arg-type]
