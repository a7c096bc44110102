"""Sizes that are refused by name, and work that grows no faster than its input below them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lorabake.likeness
from lorabake import load_recipe, plan
from lorabake.adapters import shared, suffixes
from lorabake.architectures.generic import GENERIC
from lorabake.errors import FileError, LorabakeError, MatchError
from lorabake.inspection import inspect
from lorabake.keymap.renaming import models_called
from lorabake.keymap.slots import UNSUPPORTED, _any_suffix, sort_tensors
from lorabake.keymap.view import Region, View
from lorabake.likeness import FEW, Names, nearest
from lorabake.planning import provenance
from lorabake.tensors import header
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.dtypes import nbytes
from lorabake.tensors.header import MAX_NAME, TensorInfo
from lorabake.tensors.safetensors import encode_header, read_header
from tests import builders as b


def header_only(path: Path, entries: list[tuple[str, str, tuple[int, ...]]]) -> Path:
    """Write a file whose data are a hole."""
    head = encode_header(entries, {})
    with path.open("wb") as file:
        file.write(head)
        sizes = (nbytes(dtype, shape) for _, dtype, shape in entries)
        file.truncate(len(head) + sum(sizes))
    return path


def calls_of(work: Callable[[], object]) -> int:
    """Count the functions that some work calls: time that no other process disturbs."""
    re.purge()
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call" or event == "c_call"

    sys.setprofile(profile)
    try:
        work()
    except LorabakeError:
        pass
    finally:
        sys.setprofile(None)
    return count


def assert_linear(work: Callable[[int], Callable[[], object]], small: int) -> None:
    """Check that four times the input takes at most five times the calls."""
    calls_of(work(small))  # what is imported and cached
    few, many = calls_of(work(small)), calls_of(work(4 * small))
    assert many < 5 * few, f"{few} calls for {small}, {many} for {4 * small}"


# -- bounds ----------------------------------------------------------------------------------------------


def test_a_name_has_a_bound(tmp_path: Path) -> None:
    read_header(header_only(tmp_path / "long.safetensors", [("x" * MAX_NAME, "F32", (1,))]))
    path = header_only(tmp_path / "longer.safetensors", [("x" * 1_000_000, "F32", (1,))])
    with pytest.raises(FileError, match="a tensor's name has 1,000,000 letters, and 1,000 are the limit") as told:
        read_header(path)
    assert len(str(told.value)) < 500
    with pytest.raises(FileError, match="1,000 are the limit"):
        inspect(path)


def test_a_pickles_name_has_the_same_bound(tmp_path: Path) -> None:
    torch.save({"x" * 5000: torch.zeros(2)}, tmp_path / "long.pt")
    with pytest.raises(FileError, match="has 5,000 letters"):
        open_checkpoint(tmp_path / "long.pt")


def test_tensors_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"layers.{i}.weight": torch.zeros(2, 2) for i in range(8)}
    b.save(tmp_path / "one.safetensors", tensors)
    b.save_shards(tmp_path / "shards", "model", tensors, 4)
    monkeypatch.setattr(header, "MAX_TENSORS", 7)
    for path in (tmp_path / "one.safetensors", tmp_path / "shards"):
        with pytest.raises(FileError, match="has 8 tensors, and 7 are the limit"):
            open_checkpoint(path)


@pytest.mark.parametrize("slot", ["alpha", "lora_down.weight"])
def test_a_huge_alpha_is_not_read(tmp_path: Path, slot: str) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    shapes: dict[str, tuple[int, ...]] = {"lora_down.weight": (4, 32), "lora_up.weight": (32, 4), "alpha": ()}
    shapes["alpha"] = (1 << 34,)
    entries = [(f"{name}.{each}", "F32", shape) for each, shape in shapes.items()]
    path = header_only(tmp_path / "lora.safetensors", entries)
    assert "which is no number" in str(inspect(path))
    b.save(tmp_path / "base.safetensors", b.sd1())
    with pytest.raises(MatchError, match="its alpha has the shape"):
        plan(load_recipe(b.recipe(tmp_path)))


# -- near names ------------------------------------------------------------------------------------------


def test_the_nearest_among_many() -> None:
    names = [f"model.layers.{i}.block_{i % 97}.part{i % 1009}.q_proj" for i in range(5000)]
    assert nearest("model.layers.4321.block_53.part285.q_prj", names) == names[4321]
    assert nearest("zzz", names) is None
    assert nearest("fluks", ["flux", "sdxl"]) == "flux"
    assert len(Names(names).like(names[7])) <= FEW


def test_the_nearest_does_not_compare_all(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = lorabake.likeness.get_close_matches

    def counting(word: str, names: list[str], **how: float) -> list[str]:
        compared.append(len(names))
        return real(word, names, **how)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(lorabake.likeness, "get_close_matches", counting)
    nearest("layer.q" * 5000, [f"a.{i}.layer.q{'q' * (i % 50)}" for i in range(20_000)])
    assert compared
    assert max(compared) <= FEW


# -- no more than linear ---------------------------------------------------------------------------------


def base_of(modules: int, folder: Path, name: str) -> Path:
    kinds = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    entries = [(f"model.layers.{i // 4}.{kinds[i % 4]}.weight", "F16", (8, 8)) for i in range(modules)]
    return header_only(folder / name, entries)


def test_a_lora_that_fits_nothing_takes_time_by_its_base_alone(tmp_path: Path) -> None:
    names = [
        f"{path}.{i}.{end}" for path, end in (("enc", "strange"), ("other", "self_attn.v_proj")) for i in range(15)
    ]
    b.peft(tmp_path / "lora", {name: b.lora((8, 8), rank=2) for name in names})

    def work(modules: int) -> Callable[[], object]:
        base = base_of(modules, tmp_path, f"base{modules}.safetensors")
        recipe = load_recipe(b.recipe(tmp_path, base=base.name, loras=["lora"]))
        return lambda: plan(recipe)

    with pytest.raises(MatchError, match="30 of 30 modules have no place"):
        work(100)()
    assert_linear(work, 100)


def test_names_of_a_lora_that_no_sort_of_model_has_take_no_trials_of_all() -> None:
    own = {f"a{i}.b.weight": View((Region(f"a{i}.b.weight", 0, 4),), (4, 4)) for i in range(5000)}
    wanted = [f"c{i}.d{i}.weight" for i in range(5000)]
    assert models_called(own, GENERIC.components[0].renamings, wanted) == ()
    assert calls_of(lambda: models_called(own, GENERIC.components[0].renamings, wanted)) < 400_000


def test_the_sorts_of_models_are_listed_once_a_process() -> None:
    """With LoRAs that no sort names, a plan tries those that might; listing all of them takes four times as long."""
    own = {"layer.weight": View((Region("layer.weight", 0, 16),), (16, 8))}
    wanted = ["lora_unet_layer.weight"]
    assert models_called(own, GENERIC.components[0].renamings, wanted) == ()
    assert calls_of(lambda: models_called(own, GENERIC.components[0].renamings, wanted)) < 300_000


@pytest.mark.parametrize("is_lora", [False, True])
def test_inspect_takes_time_by_the_number_of_tensors(tmp_path: Path, is_lora: bool) -> None:
    def work(modules: int) -> Callable[[], object]:
        path = tmp_path / f"{modules}.safetensors"
        if is_lora:
            ends = (("lora_A.weight", (1, 8)), ("lora_B.weight", (8, 1)))
            header_only(path, [(f"m.{i}.q.{end}", "F16", shape) for i in range(modules) for end, shape in ends])
        else:
            base_of(modules, tmp_path, path.name)
        return lambda: inspect(path)

    assert_linear(work, 300)


def test_shards_list_their_inputs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(shards: int) -> Callable[[], object]:
        tensors = {f"model.layers.{i}.self_attn.q_proj.weight": torch.zeros(4, 4) for i in range(shards)}
        b.save_shards(tmp_path / f"base{shards}", "model", tensors, shards)
        b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((4, 4), rank=2)})
        recipe = load_recipe(b.recipe(tmp_path, base=f"base{shards}", loras=["lora"], output={"path": "out"}))
        return lambda: plan(recipe)

    texts = [file.metadata["lorabake.inputs"] for file in work(6)().files]  # type: ignore[attr-defined]
    assert len({*texts}) == 1
    monkeypatch.setattr(provenance, "MOST_LISTED", 1000)
    files = work(6)().files  # type: ignore[attr-defined]
    assert files[0].metadata["lorabake.inputs"] == texts[0]
    assert {json.loads(file.metadata["lorabake.inputs"])["listed_in"] for file in files[1:]} == {files[0].name}
    assert_linear(work, 60)


def test_shards_that_name_the_list_are_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorabake import VerifyOptions, verify

    monkeypatch.setattr(provenance, "MOST_LISTED", 1000)
    tensors = {f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(8, 8) for i in range(6)}
    b.save_shards(tmp_path / "base", "model", tensors, 6)
    b.peft(tmp_path / "lora", {"model.layers.5.self_attn.q_proj": b.lora((8, 8), rank=2)})
    path = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})
    b.run(path)
    b.assert_right(verify(load_recipe(path), None, VerifyOptions(stages=("structure", "weights"))))
    b.run(path, overwrite=False)  # the same again is let through


# -- suffixes by template --------------------------------------------------------------------------------


def test_no_suffix_asks_for_a_certain_number_before_its_last_dot() -> None:
    """sort_tensors reads a key's suffix with such numbers as 0: each suffix has to fit either way."""
    keys = [
        f"m.{i}.q.{end}"
        for i in (0, 7, 12)
        for end in ("weight", "lora_A.weight", "lora_A.3.weight", "lora_A.12.weight", "oft_blocks.2", "oft_blocks.5",
                    "hada_w1_a", "lora_B.1", "modules_to_save.2.weight", "base_layer.weight", "lora_1.down.weight")
    ]  # fmt: skip
    rows = (*suffixes(), *UNSUPPORTED)
    for key in keys:
        info = TensorInfo(key, key, "F16", (1,), Path("x"), 0, 2)
        sorted_ = sort_tensors([info], suffixes(), shared())
        match = _any_suffix(suffixes()).search(key)
        row = int(match.lastgroup.removeprefix("row")) if match and match.lastgroup else None
        slots = {slot for module in sorted_.modules.values() for slot in module.slots}
        assert slots | {*sorted_.unsupported} == ({rows[row][1]} if row is not None else set()), key
