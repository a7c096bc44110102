"""Outputs with one LoRA at several strengths: its product is made once, and the bytes are those of single bakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from lorabake.baking import RunOptions, bake, bake_together, plan
from lorabake.execution import products
from lorabake.execution.products import add_scaled, is_apart
from lorabake.planning import Plan
from lorabake.planning.cost import APART_RANK
from lorabake.recipe import load_recipe
from tests import builders as b

ROWS, COLUMNS, RANK = 48, 40, 6
SHAPES: Mapping[str, tuple[int, ...]] = {
    "layers.0.attn.qkv.weight": (3 * ROWS, COLUMNS),
    "layers.0.mlp.up.weight": (ROWS, COLUMNS),
    "layers.1.conv.weight": (ROWS, 8, 3, 3),
}
TILES = {key: -(-shape[0] // 16) for key, shape in SHAPES.items()}
STRENGTHS = (1.0, -0.75, 0.0, 1e-6, 40.0, 0.3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ranks of 6 be high, and tensors have several tiles."""
    monkeypatch.setattr("lorabake.execution.tiles.TILE_VALUES", 16 * COLUMNS)
    monkeypatch.setattr(products, "APART_RANK", RANK)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, ...]]:
    """Count the products that are made, by their shapes."""
    made: Counter[tuple[int, ...]] = Counter()
    multiplied = products.multiplied

    def counting(up: torch.Tensor, down: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        made[tuple(out.shape)] += 1
        return multiplied(up, down, out)

    monkeypatch.setattr(products, "multiplied", counting)
    return made


def write(folder: Path, dtype: torch.dtype, rank: int = RANK) -> None:
    values = b.Values(3)
    b.save(folder / "base.safetensors", {key: values(*shape, dtype=dtype) for key, shape in SHAPES.items()})
    for seed, name in enumerate(("style", "person")):
        modules = {
            f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}": b.lora(
                shape, rank=rank, seed=9 * seed + place
            )
            for place, (key, shape) in enumerate(SHAPES.items())
        }
        b.kohya(folder / f"{name}.safetensors", modules)


def planned(folder: Path, loras: Sequence[Mapping[str, float]], **fields: object) -> list[Plan]:
    plans = []
    for number, strengths in enumerate(loras):
        listed = [{"path": f"{name}.safetensors", "strength": strength} for name, strength in strengths.items()]
        output = {"path": f"{number}.safetensors", "allow_loss": True}
        plans.append(plan(load_recipe(b.recipe(folder, loras=listed, output=output, **fields))))
    return plans


def options(workers: int) -> RunOptions:
    return RunOptions(device="cpu", workers=workers, overwrite=True, force=True, fsync=False)


def check_same(plans: Sequence[Plan], workers: int) -> None:
    """Bake each alone, and all together; the bytes and what is told of them are the same."""
    alone = [bake(each, options(1)) for each in plans]
    digests = [b.sha256(each.path) for each in plans]
    together = bake_together(plans, options(workers))
    assert [b.sha256(each.path) for each in plans] == digests
    assert [result.survival for result in together] == [result.survival for result in alone]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("workers", [1, 4])
def test_the_bytes_are_those_of_single_bakes(tmp_path: Path, dtype: torch.dtype, workers: int) -> None:
    write(tmp_path, dtype)
    check_same(planned(tmp_path, [{"style": strength} for strength in STRENGTHS]), workers)


def test_the_bytes_are_those_of_single_bakes_in_float64_and_one_after_the_other(tmp_path: Path) -> None:
    write(tmp_path, torch.float16, rank=2 * RANK)
    mixed = [{"style": 1.0, "person": 0.5}, {"style": 0.25}, {"person": 0.5}, {"person": 0.1, "style": -2.0}]
    for fields in ({"compute_dtype": "float64"}, {"compose": "sequential"}, {}):
        check_same(planned(tmp_path, mixed, **fields), 2)


@pytest.mark.parametrize("workers", [1, 4])
def test_each_tile_has_its_product_made_once(tmp_path: Path, counted: Counter[tuple[int, ...]], workers: int) -> None:
    write(tmp_path, torch.float16)
    one, *others = planned(tmp_path, [{"style": strength} for strength in (1.0, -0.75, 0.5, 0.3)])
    bake(one, options(1))
    alone = Counter(counted)
    assert sum(alone.values()) >= sum(TILES.values())
    counted.clear()
    bake_together([one, *others], options(workers))
    assert counted == alone


def test_two_loras_at_all_strengths_take_two_products_a_tile(
    tmp_path: Path, counted: Counter[tuple[int, ...]]
) -> None:
    write(tmp_path, torch.float16, rank=2 * RANK)
    grid = [{"style": style, "person": person} for style in (0.5, 1.0) for person in (0.3, 0.6, -1.0)]
    plans = planned(tmp_path, grid)
    bake(plans[0], options(1))
    alone = Counter(counted)
    counted.clear()
    bake_together(plans, options(1))
    assert counted == alone
    counted.clear()
    check_same(plans, 2)


def test_what_outputs_do_not_have_in_common_is_made_for_each(
    tmp_path: Path, counted: Counter[tuple[int, ...]]
) -> None:
    """Two LoRAs, and a rank that is too low beside another LoRA: three outputs with nothing in common."""
    write(tmp_path, torch.float16)
    plans = planned(tmp_path, [{"style": 1.0}, {"person": 1.0}, {"style": 1.0, "person": 1.0}])
    bake(plans[0], options(1))
    alone = sum(counted.values())
    counted.clear()
    bake_together(plans, options(1))
    assert sum(counted.values()) == 2 * alone


def test_the_rank_alone_decides() -> None:
    decided = [is_apart(rank, together) for together in (1, 2) for rank in (RANK - 1, RANK, 2 * RANK - 1, 2 * RANK)]
    assert decided == [False, True, True, True, False, False, False, True]
    assert APART_RANK >= 64, "below, one more pass over each tile makes plain bakes slower"


def test_a_strength_beyond_all_numbers_gives_no_number() -> None:
    """The bake then refuses the value; torch takes no such number as a factor."""
    weight = torch.ones(2, 2)
    add_scaled(weight, torch.ones(2, 2), 1e300)
    assert bool(weight.isinf().all())
    exact = torch.ones(2, 2)
    add_scaled(exact, torch.full((2, 2), 2.0**-13), 0.5)
    assert bool((exact == 1 + 2.0**-14).all())
