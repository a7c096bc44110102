"""Combination methods: against PEFT's own functions on whole deltas, and through bakes that verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake.errors import RecipeError
from lorabake.execution.methods import combine, kept
from lorabake.planning.steps import Method
from lorabake.reference.methods import combined
from tests import builders as b

METHODS: list[dict[str, Any]] = [
    {"name": "ties", "density": 0.4},
    {"name": "dare_linear", "density": 0.5, "seed": 3},
    {"name": "dare_ties", "density": 0.6},
    {"name": "magnitude_prune", "density": 0.3},
    {"name": "svd", "rank": 2},
]
OPTIONS = VerifyOptions(stages=("structure", "weights"))
Q, FF = "lora_unet_fc", "lora_unet_out"


def deltas(count: int = 3) -> list[torch.Tensor]:
    return [b.Values(seed)(6, 7).double() for seed in range(count)]


def masks(method: Method, count: int = 3) -> list[Any]:
    return [kept(method, "fc.weight", 0, lora, 42) for lora in range(count)] if "dare" in method.name else []


@pytest.mark.oracle
@pytest.mark.parametrize("fields", METHODS, ids=lambda fields: fields["name"])
def test_a_method_is_pefts(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    merging = pytest.importorskip("peft.utils.merge_utils")
    method, strengths = Method(**fields), [0.7, 1.2, -0.4]
    drawn = iter(masks(method))
    monkeypatch.setattr(
        merging.torch, "bernoulli", lambda like: torch.from_numpy(next(drawn)).reshape(like.shape).double()
    )
    weights = torch.tensor(strengths, dtype=torch.float64)
    if method.name == "svd":
        total = merging.task_arithmetic(deltas(), weights)
        left, values, right = np.linalg.svd(total.numpy())
        wanted = torch.from_numpy(left[:, :2] @ np.diag(values[:2]) @ right[:2])
    else:
        wanted = getattr(merging, method.name)(deltas(), weights, density=method.density)
    found = combine(method, deltas(), strengths, masks(method))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fields", METHODS, ids=lambda fields: fields["name"])
def test_the_second_account_is_the_same(fields: dict[str, Any]) -> None:
    method, strengths = Method(**fields), [0.7, 1.2, -0.4]
    found = combine(method, deltas(), strengths, masks(method)).numpy()
    arrays = [delta.numpy() for delta in deltas()]
    np.testing.assert_allclose(combined(method, arrays, strengths, masks(method)), found, rtol=1e-10, atol=1e-12)


def test_the_kept_values_depend_on_seed_tensor_and_lora() -> None:
    method = Method(name="dare_ties", density=0.25)
    one = kept(method, "a", 0, 0, 100_000)
    assert abs(one.mean() - 0.25) < 0.01
    assert np.array_equal(one, kept(method, "a", 0, 0, 100_000))
    others = [("b", 0, 0), ("a", 8, 0), ("a", 0, 1)]
    assert not any(np.array_equal(one, kept(method, *other, 100_000)) for other in others)
    assert not np.array_equal(one, kept(Method(name="dare_ties", density=0.25, seed=1), "a", 0, 0, 100_000))


def files(folder: Path) -> list[dict[str, Any]]:
    values = b.Values(9)
    base = {"fc.weight": values(12, 10), "out.weight": values(8, 12), "fc.bias": values(12)}
    b.save(folder / "base.safetensors", {key: tensor.half() for key, tensor in base.items()})
    for number in range(3):
        modules = {Q: b.lora((12, 10), seed=number, size=0.5)}
        modules |= {FF: b.lora((8, 12), seed=10 + number, size=0.5)} if number else {}
        b.kohya(folder / f"{number}.safetensors", modules)
    return [{"path": f"{number}.safetensors", "strength": 0.5 + number / 4} for number in range(3)]


@pytest.mark.parametrize("fields", METHODS, ids=lambda fields: fields["name"])
def test_a_method_is_baked_and_verified(fields: dict[str, Any], tmp_path: Path) -> None:
    loras = files(tmp_path)
    path = b.bake_sd1(tmp_path, loras=loras, method=fields)
    recipe, before, after = (
        load_recipe(tmp_path / "recipe.yaml"),
        load_file(tmp_path / "base.safetensors"),
        load_file(path),
    )
    for key, module, indices in (("fc.weight", Q, (0, 1, 2)), ("out.weight", FF, (1, 2))):
        shape = tuple(before[key].shape)
        slots = [b.lora(shape, seed=(0 if module == Q else 10) + index, size=0.5) for index in indices]
        parts = [b.delta(each, shape) for each in slots]
        drawn = [kept(recipe.method, key, 0, index, parts[0].numel()) for index in indices]
        change = combined(
            recipe.method, [part.numpy() for part in parts], [loras[index]["strength"] for index in indices], drawn
        )
        b.assert_rounded_once(after[key], before[key].double() + torch.from_numpy(change), exactly=True)
    assert torch.equal(before["fc.bias"], after["fc.bias"])
    first = b.sha256(path)
    assert verify(recipe, options=OPTIONS).is_true
    for workers in (1, 3):
        assert b.sha256(b.run(tmp_path / "recipe.yaml", workers=workers).path) == first
    b.bake_sd1(tmp_path, loras=loras)
    b.save(tmp_path / "sum.safetensors", load_file(tmp_path / "out.safetensors"))
    b.bake_sd1(tmp_path, loras=loras, method=fields)
    other = verify(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "sum.safetensors", options=OPTIONS)
    assert {each.check for each in other.findings if each.status == "fail"} & {
        "weights.values",
        "weights.strength",
        "weights.other_lora",
    }


def test_a_method_is_the_same_on_fused_and_split_weights(tmp_path: Path) -> None:
    """q, k and v are pieces of their own, whether the base keeps them in one tensor or in three."""
    found = []
    for layout in ("single", "folder"):
        folder = tmp_path / layout
        folder.mkdir()
        for number in range(2):
            modules = {
                f"lora_transformer_transformer_blocks_0_attn_to_{name}": b.lora((8, 8), seed=3 * number + part)
                for part, name in enumerate("qkv")
            }
            b.kohya(folder / f"{number}.safetensors", modules)
        values = b.Values(1)
        parts = [values(8, 8) for _ in range(3)]
        if layout == "single":
            names = ("double_blocks.0.img_mod.lin", "single_blocks.0.linear1", "img_in", "vector_in.in_layer")
            base = {f"{name}.weight": values(8, 8) for name in names}
            base["double_blocks.0.img_attn.qkv.weight"] = torch.cat(parts)
        else:
            names = ("transformer_blocks.0.attn.add_q_proj", "transformer_blocks.0.norm1_context.linear")
            names += ("single_transformer_blocks.0.proj_mlp", "x_embedder", "time_text_embed.text_embedder.linear_1")
            base = {f"{name}.weight": values(8, 8) for name in names}
            base |= {
                f"transformer_blocks.0.attn.to_{name}.weight": part for name, part in zip("qkv", parts, strict=True)
            }
        b.save(folder / "base.safetensors", base)
        method = {"name": "ties", "density": 0.5}
        path = b.bake_sd1(folder, loras=["0.safetensors", "1.safetensors"], method=method)
        baked = load_file(path)
        assert verify(load_recipe(folder / "recipe.yaml"), options=OPTIONS).is_true
        if layout == "single":
            found.append(baked["double_blocks.0.img_attn.qkv.weight"])
        else:
            found.append(torch.cat([baked[f"transformer_blocks.0.attn.to_{name}.weight"] for name in "qkv"]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("ties", "the method ties needs density"),
        ("svd", "the method svd needs rank"),
        ({"name": "ties", "density": 0.5, "seed": 1}, "the method ties has no seed"),
        ({"name": "sum", "density": 0.5}, "the method sum has no density"),
        ({"name": "dare_ties", "density": 0}, "density"),
        ({"name": "average"}, "name"),
    ],
)
def test_a_method_is_said_whole(method: Any, words: str, tmp_path: Path) -> None:
    path = b.recipe(tmp_path, method=method)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)
