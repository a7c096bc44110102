"""Shapes: the plan refuses a tensor of another one than it should have, side by side, slot by slot, for every kind.

A tensor that is too short would else be repeated by torch, and one that is too long be cut. The few other shapes that
a right file may have are listed, each with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from lorabake.adapters import kinds
from lorabake.errors import FileError, MatchError, ValueTooLargeError
from lorabake.matching.patches import Patch
from tests import builders as b
from tests.tables import infos
from tests.test_kinds import CONV_2D, LINEAR, Case, cases
from tests.test_matching import made_for, matched, source

Shape = tuple[int, ...]
BASE: dict[str, object] = {
    "emb.weight": (20, 16),
    "fc.weight": (32, 16),
    "fc.bias": (32,),
    "out.weight": (16, 32),
    "norm.weight": (32,),
    "norm.bias": (32,),
    "conv.weight": (8, 4, 3, 3),
    "conv1.weight": (8, 4, 3),
}


@dataclass(frozen=True)
class Form:
    """Describe one right file: key -> shape, or [dtype, shape]; what PEFT says of it; and what it changes."""

    tensors: Mapping[str, object]
    config: Mapping[str, object] | None = None
    base: Mapping[str, object] = field(default_factory=lambda: BASE)


def peft(
    kind: str, tensors: Mapping[str, object], base: Mapping[str, object] | None = None, **config: object
) -> Form:
    """Describe a file of PEFT's, by the names below `base_model.`."""
    named = {("base_model." if name.startswith(SHARED) else ROOT) + name: size for name, size in tensors.items()}
    return Form(named, {"peft_type": kind, "peft_version": "0.21.2", **config}, base or BASE)


def as_form(case: Case, weight: Shape) -> Form:
    """Take over a form of another test's."""
    tensors: dict[str, object] = {suffix: shape for suffix, (_, shape) in case.shapes.items()}
    for suffix, (_, tensor) in case.given.items():
        tensors[suffix] = ["F32" if tensor.is_floating_point() else "I64", tuple(tensor.shape)]
    named = {f"{case.prefix}layer{suffix}": entry for suffix, entry in tensors.items()}
    return Form(named, base={"layer.weight": weight, "layer.bias": weight[:1]})


SOME = {"linear": LINEAR, "conv2d": CONV_2D}
ROOT = "base_model.model."
SHARED = ("vera_", "pvera_", "randlora_", "vblora_")
LORA = {"fc.lora_A.weight": (3, 16), "fc.lora_B.weight": (32, 3)}
VERA = {"fc.vera_lambda_b": (32,), "fc.vera_lambda_d": (5,), "out.vera_lambda_b": (16,), "out.vera_lambda_d": (5,)}
PVERA = {"fc.pvera_lambda_b": (32,), "fc.pvera_lambda_d": (10,)}
RANDLORA = {"fc.randlora_lambda": (5, 4), "fc.randlora_gamma": (4, 16)}
MONTECLORA = "fc.lora_monteclora_sampler."
BANK = {"vblora_vector_bank": (10, 8)}

FORMS: dict[str, Form] = {
    "LoRA": peft("LORA", LORA, r=3, lora_alpha=5),
    "LoRA and its bias": peft("LORA", LORA | {"fc.lora_B.bias": (32,)}, r=3, lora_alpha=5, lora_bias=True),
    "LoRA of DoRA": peft("LORA", LORA | {"fc.lora_magnitude_vector": (32,)}, r=3, lora_alpha=5, use_dora=True),
    "LoRA on a convolution, of DoRA": peft(
        "LORA",
        {"conv.lora_A.weight": (3, 4, 3, 3), "conv.lora_B.weight": (8, 3, 1, 1)}
        | {"conv.lora_magnitude_vector": (1, 8, 1, 1)},
        r=3,
        use_dora=True,
    ),
    "LoRA in one dimension": peft("LORA", {"conv1.lora_A.weight": (2, 4, 3), "conv1.lora_B.weight": (8, 2, 1)}, r=2),
    "LoRA with a rank of its own": peft("LORA", LORA, r=8, rank_pattern={"fc": 3}),
    "LoRA on an embedding": peft("LORA", {"emb.lora_embedding_A": (3, 20), "emb.lora_embedding_B": (16, 3)}, r=3),
    "LoRA on an embedding, of DoRA": peft(
        "LORA",
        {"emb.lora_embedding_A": (3, 20), "emb.lora_embedding_B": (16, 3), "emb.lora_magnitude_vector": (16,)},
        r=3,
        use_dora=True,
    ),
    "VeLoRA": peft("LORA", LORA | {"fc.lora_velora_embed": (4,)}, r=3, velora_config={"num_groups": 4}),
    "MonteCLoRA": peft(
        "LORA",
        LORA
        | {f"{MONTECLORA}{name}": (2,) for name in ("expert_weights", "expert_weights_prior")}
        | {f"{MONTECLORA}gaussian_var_prior": (3, 3), f"{MONTECLORA}std_prior": (3,)},
        r=3,
        monteclora_config={"num_samples": 2},
    ),
    "saved whole": peft(
        "LORA", LORA | {"norm.weight": (32,), "norm.bias": (32,)}, r=3, modules_to_save=["norm"], bias="all"
    ),
    "LoHa": peft(
        "LOHA",
        {"fc.hada_w1_a": (32, 3), "fc.hada_w1_b": (3, 16), "fc.hada_w2_a": (32, 3), "fc.hada_w2_b": (3, 16)},
        r=3,
        alpha=5,
    ),
    "LoHa with cores": peft(
        "LOHA",
        {f"conv.hada_{name}": size for k in "12" for name, size in ((f"w{k}_a", (3, 8)), (f"w{k}_b", (3, 4)))}
        | {"conv.hada_t1": (3, 3, 3, 3), "conv.hada_t2": (3, 3, 3, 3)},
        r=3,
    ),
    "LoKr": peft("LOKR", {"fc.lokr_w1": (4, 4), "fc.lokr_w2_a": (8, 2), "fc.lokr_w2_b": (2, 4)}, r=2, alpha=5),
    "LoKr with a core": peft(
        "LOKR",
        {"conv.lokr_w1": (2, 2), "conv.lokr_w2_a": (3, 4), "conv.lokr_w2_b": (3, 2), "conv.lokr_t2": (3, 3, 3, 3)},
        r=3,
    ),
    "LoKr, both decomposed": peft(
        "LOKR",
        {"fc.lokr_w1_a": (4, 1), "fc.lokr_w1_b": (1, 4), "fc.lokr_w2_a": (8, 1), "fc.lokr_w2_b": (1, 4)},
        r=1,
    ),
    "AdaLoRA": peft(
        "ADALORA", {"fc.lora_A": (4, 16), "fc.lora_B": (32, 4), "fc.lora_E": (4, 1)}, init_r=4, lora_alpha=7
    ),
    "IA3 of outputs": peft("IA3", {"fc.ia3_l": (32, 1)}, feedforward_modules=[]),
    "IA3 of inputs": peft("IA3", {"out.ia3_l": (1, 32)}, feedforward_modules=["out"]),
    "IA3 of a convolution's outputs": peft("IA3", {"conv.ia3_l": (1, 8, 1, 1)}, feedforward_modules=[]),
    "IA3 of a convolution's inputs": peft("IA3", {"conv.ia3_l": (1, 4, 1, 1)}, feedforward_modules=["conv"]),
    "OFT": peft("OFT", {"fc.oft_R.weight": (2, 28)}, r=0, oft_block_size=8, use_cayley_neumann=False),
    "OFT by its number of blocks": peft("OFT", {"fc.oft_R.weight": (4, 6)}, r=4, use_cayley_neumann=False),
    "OFT, one block shared": peft(
        "OFT", {"fc.oft_R.weight": (1, 28)}, oft_block_size=8, use_cayley_neumann=False, block_share=True
    ),
    "OFT of a size that PEFT adjusted": peft(
        "OFT", {"fc.oft_R.weight": (2, 28)}, r=0, oft_block_size=7, use_cayley_neumann=False
    ),
    "BOFT": peft(
        "BOFT",
        {"fc.boft_R": (2, 4, 4, 4), "fc.boft_s": (32, 1)},
        boft_block_size=4,
        boft_block_num=0,
        boft_n_butterfly_factor=2,
    ),
    "BOFT by its number of blocks": peft(
        "BOFT",
        {"conv.boft_R": (1, 6, 6, 6), "conv.boft_s": (1, 8)},
        boft_block_size=0,
        boft_block_num=6,
        boft_n_butterfly_factor=1,
    ),
    "HRA": peft("HRA", {"fc.hra_u": (16, 4)}, r=4),
    "HiRA": peft("HIRA", {"fc.hira_A": (3, 16), "fc.hira_B": (32, 3)}, r=3),
    "MiSS": peft("MISS", {"fc.miss_block": (8, 32)}, r=8, init_weights=True),
    "MiSS, mini": peft("MISS", {"fc.miss_block": (8, 4)}, r=8, mini_r=4, init_weights="mini"),
    "MiSS, bat": peft("MISS", {"fc.miss_block": (4, 8, 8)}, r=8, init_weights="bat"),
    "DEFT": peft("DEFT", {"fc.deft_P": (32, 3), "fc.deft_R": (3, 16)}, r=3, decomposition_method="qr"),
    "DEFT, nothing put in": peft("DEFT", {"fc.deft_P": (32, 3)}, r=3, decomposition_method="relu", para=True),
    "C3A": peft("C3A", {"fc.c3a_kernel": (4, 2, 8)}, block_size=8),
    "C3A with a block of its own": peft(
        "C3A", {"fc.c3a_kernel": (8, 4, 4)}, block_size=8, block_size_pattern={"fc": 4}
    ),
    "DeLoRA": peft(
        "DELORA",
        {"fc.delora_A": (4, 16), "fc.delora_B": (32, 4), "fc.delora_lambda": (1,), "fc.delora_w_norm": (16,)},
        r=4,
    ),
    "FourierFT": peft("FOURIERFT", {"fc.fourierft_spectrum": (40,)}, n_frequency=40, scaling=1.0, random_loc_seed=7),
    "FourierFT with a number of its own": peft(
        "FOURIERFT",
        {"fc.fourierft_spectrum": (30,)},
        n_frequency=40,
        n_frequency_pattern={"fc": 30},
        scaling=1.0,
        random_loc_seed=7,
    ),
    "WaveFT": peft(
        "WAVEFT",
        {"fc.waveft_spectrum": (40,)},
        n_frequency=40,
        scaling=25.0,
        random_loc_seed=7,
        wavelet_family="db1",
        use_idwt=True,
    ),
    "SHiRA": peft("SHIRA", {"fc.shira_weight": (144,), "fc.shira_indices": ["I32", (2, 144)]}, r=3),
    "Super-Tuning and a product": peft(
        "SUPERTUNING",
        {"fc.supertuning_values": (51,), "fc.supertuning_indices": ["I32", (51,)]}
        | {"fc.supertuning_lora_A.weight": (2, 16), "fc.supertuning_lora_B.weight": (32, 2)},
        sparsity=0.9,
        r=2,
        lora_alpha=3,
    ),
    "GraLoRA, hybrid": peft(
        "GRALORA",
        {"fc.gralora_A": (4, 4, 8), "fc.gralora_B": (4, 8, 8)}
        | {"fc.gralora_A_general.weight": (3, 16), "fc.gralora_B_general.weight": (32, 3)},
        r=8,
        gralora_k=4,
        alpha=12,
        hybrid_r=3,
    ),
    "VeRA": peft("VERA", VERA | {"vera_A": (5, 32), "vera_B": (32, 5)}, r=5, projection_prng_key=0),
    "VeRA, drawn again": peft("VERA", VERA, r=5, projection_prng_key=0, save_projection=False),
    "PVeRA": peft("PVERA", PVERA | {"pvera_A": (10, 16), "pvera_B": (32, 5)}, r=5, projection_prng_key=0),
    "PVeRA, drawn again": peft("PVERA", PVERA, r=5, projection_prng_key=0, save_projection=False),
    "RandLoRA": peft(
        "RANDLORA",
        RANDLORA
        | {"fc.randlora_A": (5, 1, 16), "fc.randlora_B": (32, 4, 5)}
        | {"randlora_A": (5, 1, 16), "randlora_B": (32, 4, 5)},
        r=5,
        randlora_alpha=7,
    ),
    "RandLoRA, drawn again": peft(
        "RANDLORA", RANDLORA, r=5, randlora_alpha=7, projection_prng_key=0, save_projection=False
    ),
    "VB-LoRA": peft(
        "VBLORA",
        {"fc.vblora_logits_A": (2, 2, 10), "fc.vblora_logits_B": (4, 2, 10), **BANK},
        r=2,
        num_vectors=10,
        vector_length=8,
        topk=3,
    ),
    "VB-LoRA, the chosen alone": peft(
        "VBLORA",
        {"fc.vblora_logits_A_topk_indices": ["I32", (2, 2, 3)], "fc.vblora_logits_A_topk_weights": (2, 2, 2)}
        | {"fc.vblora_logits_B_topk_indices": ["I32", (4, 2, 3)], "fc.vblora_logits_B_topk_weights": (4, 2, 2)}
        | BANK,
        r=2,
        num_vectors=10,
        vector_length=8,
        topk=3,
    ),
    "trained tokens": peft("TRAINABLE_TOKENS", {"emb.trainable_tokens_delta": (3, 16)}, token_indices=[7, 3, 19]),
    **{
        f"RoAd {variant}": peft(
            "ROAD",
            {"fc.road_theta": (count,), "fc.road_alpha": (count,)},
            variant=f"road_{variant}",
            group_size=8,
        )
        for variant, count in ((1, 16), (2, 32), (4, 64))
    },
    "LN tuning": peft("LN_TUNING", {"norm.ln_tuning_layers.weight": (32,), "norm.ln_tuning_layers.bias": (32,)}),
    "BEFT": peft("BEFT", {"fc.beft_bias": (1, 32)}),
    "MLX": Form(
        {"fc.lora_a": (16, 3), "fc.lora_b": (3, 32), "fc.m": (32,)},
        {"lora_parameters": {"rank": 3, "scale": 2.0}, "fine_tune_type": "dora"},
    ),
    "a bias that is set": Form({"layer.bias.set_weight": (16,)}, base={"layer.weight": (16, 8), "layer.bias": (16,)}),
    "a norm's scale": Form({"q_norm.scale": (8,)}, base={"q_norm.weight": (8,)}),
    **{
        f"{name}, {weight}": as_form(case, size)
        for weight, size in SOME.items()
        for name, case in cases(size).items()
    },
    "LoRA of kohya with a core": Form(
        {"lora_unet_layer.lora_up.weight": (16, 3, 1, 1), "lora_unet_layer.lora_down.weight": (2, 8, 1, 1)}
        | {"lora_unet_layer.lora_mid.weight": (3, 2, 3, 3), "lora_unet_layer.alpha": (), "layer.diff_b": (16,)}
        | {"lora_unet_layer.dora_scale": (16, 1, 1, 1)},
        base={"layer.weight": (16, 8, 3, 3), "layer.bias": (16,)},
    ),
    "LoRA's bias and alpha": Form(
        {
            "layer.lora_A.weight": (2, 8),
            "layer.lora_B.weight": (16, 2),
            "layer.lora_B.bias": (16,),
            "layer.alpha": (),
        },
        base={"layer.weight": (16, 8), "layer.bias": (16,)},
    ),
    "sparse values beside a core": Form(
        {"lora_unet_layer.lora_up.weight": (16, 3, 1, 1), "lora_unet_layer.lora_down.weight": (2, 8, 1, 1)}
        | {"lora_unet_layer.lora_mid.weight": (3, 2, 3, 3), "lora_unet_layer.bias_values": (5,)}
        | {"lora_unet_layer.bias_indices": ["I16", (2, 5)], "lora_unet_layer.bias_size": ["I16", (2,)]},
        base={"layer.weight": (16, 8, 3, 3)},
    ),
    "OFT of kohya for Flux, four parts": Form(
        {f"oft_unet_layer.oft_blocks.{part}": (2, 2, 2) for part in range(4)} | {"oft_unet_layer.alpha": ()},
        base={"layer.weight": (16, 8)},
    ),
    "OFT of 2023 and alpha": Form(
        {"oft_unet_layer.oft_diag": (4, 4, 4), "oft_unet_layer.alpha": ()}, base={"layer.weight": (16, 8)}
    ),
    "LoRA on experts": peft(
        "LORA",
        {"mlp.experts.base_layer.lora_A.weight": (12, 8), "mlp.experts.base_layer.lora_B.weight": (10, 12)}
        | {"mlp.experts.lora_A.weight": (12, 5), "mlp.experts.lora_B.weight": (8, 12)},
        base={"mlp.experts.gate_up_proj": (4, 10, 8), "mlp.experts.down_proj": (4, 8, 5)},
        r=3,
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    ),
    "LoRA of three sides on experts": Form(
        {"mlp.experts.down_proj.lora_A": (4, 3, 5), "mlp.experts.down_proj.lora_B": (4, 8, 3)}
        | {"mlp.experts.down_proj.alpha": ()},
        base={"mlp.experts.gate_up_proj": (4, 10, 8), "mlp.experts.down_proj": (4, 8, 5)},
    ),
    "norms of LyCORIS": Form(
        {"lora_unet_layer.w_norm": (16,), "lora_unet_layer.b_norm": (16,)},
        base={"layer.weight": (16,), "layer.bias": (16,)},
    ),
}


def sizes(entry: object) -> Shape:
    return tuple(entry[1]) if isinstance(entry, list) else tuple(entry)  # type: ignore[call-overload]


def changes(shape: Shape) -> Iterator[Shape]:
    """Yield a shape with one side changed, taken away or added, and turned round."""
    found = [shape[::-1], (1, *shape), (*shape, 1), (2, *shape), (*shape, 2)]
    for side, size in enumerate(shape):
        found += [(*shape[:side], other, *shape[side + 1 :]) for other in (0, 1, size - 1, size + 1, 2 * size)]
        found.append(shape[:side] + shape[side + 1 :])
    yield from dict.fromkeys(each for each in found if each != shape and min(each, default=0) >= 0)


def placed(form: Form, tensors: Mapping[str, object]) -> list[Patch]:
    """Plan a file as a recipe's only LoRA."""
    lora = source(infos(dict(tensors)), config=None if form.config is None else dict(form.config))
    return matched(made_for(infos(dict(form.base))), lora)[0]


def may_be(name: str, key: str, right: Shape, changed: Shape) -> bool:
    """Tell whether a changed shape is another that a right file may have."""
    end, count = key.rpartition(".")[2], prod(right)
    if all(a == b for a, b in zip_longest(right, changed, fillvalue=1)):
        return True  # sides of 1 at the end: linear layers and convolutions 1 wide are written either way
    if end in ("alpha", "on_input"):
        return prod(changed) == 1  # one number
    if end in ("lora_magnitude_vector", "m"):
        return prod(changed) == count == max(changed)  # one number a row: programs put the sides of 1 where they like
    if end == "oft_blocks":  # LyCORIS's BOFT, of any number of rounds, or its diagonal OFT
        return changed[-3:] == right[-3:] and len(changed) in (3, 4) and all(changed)
    if end == "scaled_oft" or (end == "weight" and name.startswith("OneTrainer") and changed == (1, *right[1:])):
        return True  # a marker without a value that counts; OneTrainer's blocks may share one triangle
    if key.startswith("mlp.experts.down_proj.lora_"):
        return changed == (1, *right[1:])  # one for all experts
    if end == "boft_R":
        return changed == (1, *right[1:])  # PEFT trains one round alone where it has no CUDA extension
    if end == "weight" and name.startswith("IA3 of") and key.startswith("lora_unet_"):
        return max(changed) == prod(changed) in (8, 16)  # on_input is a value: the bake reads it, and refuses
    return False


def told_of(form: Form, key: str, changed: object) -> str | None:
    """Return what the plan says of a file with one tensor of another shape; None if it takes it."""
    try:
        placed(form, {**form.tensors, key: changed})
    except MatchError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FORMS)
def test_a_tensor_of_another_shape_is_refused_by_the_plan(name: str) -> None:
    form = FORMS[name]
    assert placed(form, form.tensors), "the file itself must fit"
    for key, entry in form.tensors.items():
        right = sizes(entry)
        for changed in changes(right):
            told = told_of(form, key, [entry[0], changed] if isinstance(entry, list) else changed)
            assert told is not None or may_be(name, key, right, changed), (key, right, changed)
            numbers = any(str(size) in str(told) for size in (*changed, prod(changed)))
            assert told is None or numbers or "both change" in told or (changed == (0,) and "are empty" in told), told


def test_every_slot_of_every_kind_is_in_a_form() -> None:
    seen: dict[str, set[str]] = {}
    for form in FORMS.values():
        for patch in placed(form, form.tensors):
            seen.setdefault(patch.kind.name, set()).update(patch.tensors)
    for kind in kinds():
        wanted = (kind.required | kind.optional) - kind.markers
        assert wanted <= seen.get(kind.name, set()), (kind.name, wanted - seen.get(kind.name, set()))


# -- where the plan could be wrong, the bake refuses, too ------------------------------------------------------


def test_a_change_of_another_shape_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is repeated to fill a weight, even if a kind should forget to ask for its shape."""
    b.save(tmp_path / "base.safetensors", {"layer.weight": torch.ones(16, 8)})
    for name, tensors in {
        "lora": {"layer.lora_up.weight": (1, 2), "layer.lora_down.weight": (2, 8)},
        "loha": {f"layer.hada_w{k}_{side}": (1, 2) if side == "a" else (2, 8) for k in "12" for side in "ab"},
        "set_weight": {"layer.set_weight": (1, 8)},
    }.items():
        b.save(tmp_path / "lora.safetensors", {key: torch.ones(shape) for key, shape in tensors.items()})
        kind = next(kind for kind in kinds() if kind.name == name)
        monkeypatch.setattr(type(kind), "fault", lambda *_: None)
        with pytest.raises(MatchError, match=r"layer: .* made 1 × \d of its tensors, and the weight takes 16 × "):
            b.bake_sd1(tmp_path)
        assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        (
            {"fc.shira_weight": torch.ones(2), "fc.shira_indices": torch.tensor([[0, 1], [0, -1]])},
            {"peft_type": "SHIRA"},
            "out of the weight",
        ),
        (
            {"fc.vblora_logits_A_topk_indices": torch.full((2, 1, 2), 9)}
            | {"fc.vblora_logits_A_topk_weights": torch.ones(2, 1, 1)}
            | {"fc.vblora_logits_B_topk_indices": torch.zeros(1, 2, 2, dtype=torch.int64)}
            | {"fc.vblora_logits_B_topk_weights": torch.ones(1, 2, 1), "vblora_vector_bank": torch.ones(3, 4)},
            {"peft_type": "VBLORA", "topk": 2},
            "names vectors that its bank of 3 has not",
        ),
    ],
)
def test_places_out_of_what_they_count_are_refused(
    tensors: dict[str, torch.Tensor], config: dict[str, object], words: str, tmp_path: Path
) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.ones(4, 4)})
    named = {("base_model." if name.startswith(SHARED) else ROOT) + name: each for name, each in tensors.items()}
    (tmp_path / "adapter").mkdir()
    b.save(tmp_path / "adapter" / "adapter_model.safetensors", named)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MatchError, match=words):
        b.bake_sd1(tmp_path, loras=["adapter"])


def test_an_empty_tensor_is_named_as_that() -> None:
    form = peft("HRA", {"fc.hra_u": (16, 4)}, apply_GS=False)
    assert "its hra_u is empty: (16, 0)" in str(told_of(form, f"{ROOT}fc.hra_u", (16, 0)))


def test_places_are_whole_numbers_in_any_precision(tmp_path: Path) -> None:
    """A place beyond 2^24 has no float32 of its own."""
    place, columns = 2**24 + 1, 2**23 + 8
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.zeros(2, columns, dtype=torch.float16)})
    tensors = {"supertuning_values": torch.ones(1), "supertuning_indices": torch.tensor([place])}
    named = {f"{ROOT}fc.{key}": each for key, each in tensors.items()}
    b.save(tmp_path / "adapter" / "adapter_model.safetensors", named)
    config = {"peft_type": "SUPERTUNING", "lora_alpha": 1, "r": 0}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    raw = b.tensor_bytes(b.bake_sd1(tmp_path, loras=["adapter"], output={"hash": False}))["fc.weight"]
    assert np.frombuffer(raw, np.float16).nonzero()[0].tolist() == [place]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", [{"name": "svd", "rank": 2}, {"name": "ties", "density": 0.5}, {"name": "sum"}])
def test_what_is_no_number_is_refused_by_every_method(
    method: dict[str, object], value: float, tmp_path: Path
) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.ones(8, 8)})
    factors = {"fc.lora_up.weight": torch.full((8, 2), value), "fc.lora_down.weight": torch.ones(2, 8)}
    b.save(tmp_path / "lora.safetensors", factors)
    with pytest.raises(ValueTooLargeError, match=r"fc\.weight"):
        b.bake_sd1(tmp_path, method=method)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("field", ["lora_alpha", "r", "alpha_pattern", "rank_pattern"])
@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "4", True, [4], {"a": 1}, 1e308])
def test_numbers_of_a_configuration_that_are_none(field: str, value: object, tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.ones(8, 8)})
    config = {field: {"fc": value} if field.endswith("pattern") else value}
    b.peft(tmp_path / "adapter", {"fc": b.lora((8, 8))}, **config)
    wanted = ValueTooLargeError if value == 1e308 and "alpha" in field else FileError
    with pytest.raises(wanted) as caught:
        b.bake_sd1(tmp_path, loras=["adapter"])
    assert len(str(caught.value)) < 500
