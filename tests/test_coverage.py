"""Which kinds of adapters find a place on which families: on every sort of layer of every network, by real headers.

What a kind does to a weight is proven elsewhere (test_kinds.py, oracle/); here each meets the weights of each family,
fused, split or swapped as that family stores them. This file writes docs/coverage.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path

import pytest

from lorabake.adapters import kinds
from lorabake.errors import MatchError
from lorabake.keymap.names import pattern_of
from lorabake.matching.names import BaseNames
from tests.tables import infos
from tests.test_formats import GOLD, bases
from tests.test_matching import matched, source

Shape = tuple[int, ...]
Form = Callable[[Shape], dict[str, Shape] | None]
PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"
R = 4


def side(size: int, most: int = 8) -> int:
    """Return the largest even divisor up to `most`, or 0."""
    return next((each for each in range(most, 1, -2) if size % each == 0), 0)


def matrices(form: Callable[[int, int, Shape], dict[str, Shape] | None]) -> Form:
    """Ask a form for weights with inputs alone: it gets outputs, inputs and the kernel."""
    return lambda shape: form(shape[0], shape[1], shape[2:]) if len(shape) > 1 else None


def linears(form: Callable[[int, int], dict[str, Shape] | None]) -> Form:
    return lambda shape: form(*shape) if len(shape) == 2 else None


def ones(kernel: Shape) -> Shape:
    return (1,) * len(kernel)


def blocks(o: int, i: int, k: Shape) -> dict[str, Shape] | None:
    size = side(o)
    return {"oft_blocks": (o // size, size, size), "alpha": ()} if size else None


def parts(o: int, i: int, k: Shape) -> dict[str, Shape] | None:
    size = side(o // 2)
    halves = {f"oft_blocks.{half}": (o // 2 // size, size, size) for half in (0, 1)} if size and o % 2 == 0 else None
    return {**halves, "alpha": ()} if halves else None


def butterfly(o: int, i: int, k: Shape) -> dict[str, Shape] | None:
    return {"oft_blocks": (2, o // 4, 4, 4)} if o % 8 == 0 else None


def packed(o: int, i: int, k: Shape) -> dict[str, Shape] | None:
    size = side(i * prod(k))
    return {"oft_R.weight": (i * prod(k) // size, size * (size - 1) // 2)} if size else None


def rotated(o: int, i: int, k: Shape) -> dict[str, Shape] | None:
    size = side(i * prod(k))
    return {"boft_R": (1, i * prod(k) // size, size, size), "boft_s": (1, o) if k else (o, 1)} if size else None


def circulant(o: int, i: int) -> dict[str, Shape] | None:
    size = next((each for each in range(8, 1, -1) if o % each == i % each == 0), 1)
    return {"c3a_kernel": (o // size, i // size, size)}


def gralora(o: int, i: int) -> dict[str, Shape] | None:
    return {"gralora_A": (2, i // 2, R), "gralora_B": (2, R, o // 2)} if o % 2 == i % 2 == 0 else None


def randlora(o: int, i: int) -> dict[str, Shape]:
    bases_ = -(-min(o, i) // R)
    shared = {"randlora_A": (R, 1, min(o, i)), "randlora_B": (max(o, i), bases_, R)}
    return {"randlora_lambda": (R, bases_), "randlora_gamma": (bases_, min(o, i)), **shared}


def bank(o: int, i: int) -> dict[str, Shape] | None:
    size = side(o) if i % max(side(o), 1) == 0 else 0
    logits = {"vblora_logits_A": (R, i // max(size, 1), 10), "vblora_logits_B": (o // max(size, 1), R, 10)}
    return {**logits, "base_model.vblora_vector_bank": (10, size)} if size == 8 else None


def lokr(o: int, i: int, k: Shape) -> dict[str, Shape]:
    a, c = 2 - o % 2, 2 - i % 2
    return {"lokr_w1": (a, c), "lokr_w2_a": (o // a, R), "lokr_w2_b": (R, i // c * prod(k)), "alpha": ()}


def up(o: int, i: int, k: Shape) -> dict[str, Shape]:
    return {"lora_up.weight": (o, R, *ones(k)), "lora_down.weight": (R, i, *k), "alpha": ()}


def tucker(o: int, i: int, k: Shape) -> dict[str, Shape] | None:
    down = {"lora_up.weight": (o, R, *ones(k)), "lora_down.weight": (R, i, *ones(k))}
    return {**down, "lora_mid.weight": (R, R, *k)} if k else None


PEFT = "base_model.model."
FORMS: dict[str, tuple[str, Form, dict[str, object] | None]] = {
    "LoRA, LoCon": ("lora", matrices(up), None),
    "Tucker": ("lora", matrices(tucker), None),
    "LoRA, sparse values": (
        "sparse_lora",
        matrices(lambda o, i, k: up(o, i, k) | {"bias_indices": (2, 9), "bias_values": (9,), "bias_size": (2,)}),
        None,
    ),
    "DoRA": ("lora", matrices(lambda o, i, k: up(o, i, k) | {"dora_scale": (o, 1, *ones(k))}), None),
    "LoHa": (
        "loha",
        matrices(
            lambda o, i, k: {
                "hada_w1_a": (o, R),
                "hada_w1_b": (R, i * prod(k)),
                "hada_w2_a": (o, R),
                "hada_w2_b": (R, i * prod(k)),
            }
        ),
        None,
    ),
    "LoKr": ("lokr", matrices(lokr), None),
    "GLoRA": (
        "glora",
        matrices(
            lambda o, i, k: {
                "a1.weight": (i, R, *ones(k)),
                "a2.weight": (R, i, *ones(k)),
                "b1.weight": (o, R, *ones(k)),
                "b2.weight": (R, i, *k),
            }
        ),
        None,
    ),
    "IA3": ("ia3", matrices(lambda o, i, k: {"weight": (o, 1, *ones(k)), "on_input": ()}), None),
    "OFT": ("oft", matrices(blocks), None),
    "OFT in parts": ("oft_parts", matrices(parts), None),
    "BOFT": ("oft", matrices(butterfly), None),
    "difference": ("diff", lambda shape: {"diff": shape}, None),
    "norm": ("w_norm", lambda shape: {"w_norm": shape} if len(shape) == 1 else None, None),
    "set": ("set_weight", lambda shape: {"set_weight": shape}, None),
    "OFT of PEFT": ("oft_peft", matrices(packed), {"peft_type": "OFT", "use_cayley_neumann": False}),
    "BOFT of PEFT": ("boft_peft", matrices(rotated), {"peft_type": "BOFT", "peft_version": "0.21.2"}),
    "IA3 of PEFT": (
        "ia3_peft",
        matrices(lambda o, i, k: {"ia3_l": (1, o, *ones(k)) if k else (o, 1)}),
        {"peft_type": "IA3", "target_modules": [], "feedforward_modules": []},
    ),
    "HRA": ("hra", matrices(lambda o, i, k: {"hra_u": (i * prod(k), R)}), {"peft_type": "HRA"}),
    "HiRA": ("hira", linears(lambda o, i: {"hira_A": (R, i), "hira_B": (o, R)}), {"peft_type": "HIRA"}),
    "DEFT": (
        "deft",
        linears(lambda o, i: {"deft_P": (o, R), "deft_R": (R, i)}),
        {"peft_type": "DEFT", "decomposition_method": "relu"},
    ),
    "Super-Tuning": (
        "supertuning",
        linears(lambda o, i: {"supertuning_values": (9,), "supertuning_indices": (9,)}),
        {"peft_type": "SUPERTUNING"},
    ),
    "MiSS": ("miss", linears(lambda o, i: {"miss_block": (R, o)}), {"peft_type": "MISS", "r": R}),
    "AdaLoRA": (
        "adalora",
        linears(lambda o, i: {"lora_A": (R, i), "lora_B": (o, R), "lora_E": (R, 1)}),
        {"peft_type": "ADALORA", "lora_alpha": 8, "init_r": R},
    ),
    "C3A": ("c3a", linears(circulant), {"peft_type": "C3A"}),
    "DeLoRA": (
        "delora",
        linears(lambda o, i: {"delora_A": (R, i), "delora_B": (o, R), "delora_lambda": (1,), "delora_w_norm": (i,)}),
        {"peft_type": "DELORA"},
    ),
    "FourierFT": (
        "fourierft",
        linears(lambda o, i: {"fourierft_spectrum": (min(16, o * i),)}),
        {"peft_type": "FOURIERFT", "scaling": 150.0, "random_loc_seed": 777},
    ),
    "WaveFT": (
        "waveft",
        linears(lambda o, i: {"waveft_spectrum": (min(16, o * i),)}),
        {"peft_type": "WAVEFT", "scaling": 25.0, "random_loc_seed": 777, "use_idwt": True, "wavelet_family": "db1"},
    ),
    "RoAd": (
        "road",
        linears(lambda o, i: {"road_theta": (o // 2,), "road_alpha": (o // 2,)} if o % 2 == 0 else None),
        {"peft_type": "ROAD", "variant": "road_1", "group_size": 2},
    ),
    "SHiRA": ("shira", linears(lambda o, i: {"shira_weight": (9,), "shira_indices": (2, 9)}), {"peft_type": "SHIRA"}),
    "GraLoRA": ("gralora", linears(gralora), {"peft_type": "GRALORA", "alpha": 8}),
    "VeRA": (
        "vera",
        linears(
            lambda o, i: {
                "vera_lambda_b": (o,),
                "vera_lambda_d": (R,),
                "base_model.vera_A": (R, i),
                "base_model.vera_B": (o, R),
            }
        ),
        {"peft_type": "VERA"},
    ),
    "PVeRA": (
        "pvera",
        linears(
            lambda o, i: {
                "pvera_lambda_b": (o,),
                "pvera_lambda_d": (2 * R,),
                "base_model.pvera_A": (2 * R, i),
                "base_model.pvera_B": (o, R),
            }
        ),
        {"peft_type": "PVERA"},
    ),
    "RandLoRA": ("randlora", linears(randlora), {"peft_type": "RANDLORA", "randlora_alpha": 8}),
    "VB-LoRA": ("vblora", linears(bank), {"peft_type": "VBLORA", "topk": 2}),
    "LN tuning": (
        "ln_tuning",
        lambda shape: {"ln_tuning_layers.weight": shape} if len(shape) == 1 else None,
        {"peft_type": "LN_TUNING"},
    ),
}
ELSEWHERE = {
    "whole", "whole_bias", "ln_tuning_bias", "ia3_peft_bias", "road_bias", "diff_b", "b_norm", "lora_bias", "mlx",
    "oft_diag", "set_bias",
    "trainable_tokens", "beft",
    "expert_lora", "embedding_lora", "set_scale", "vblora_topk",
}  # fmt: skip
"""Kinds that go with one above, or with layers that only language models have."""


@cache
def layers(family: str, layout: str) -> tuple[BaseNames, dict[str, Shape]]:
    """Return a base of a family, and one module of each sort by its path there."""
    base = bases(family)[layout]
    component = base.key_map.architecture.components[0].name
    _, prefix = base.key_map.placed[component]
    sorts: dict[tuple[str, Shape], str] = {}
    for key, info in base.key_map.tensors.items():
        path = key.removesuffix(".weight")
        if path != key and path.removeprefix(prefix) in base.key_map.modules[component]:
            sorts.setdefault((pattern_of(path), info.shape), path)
    return base, {path: shape for (_, shape), path in sorts.items()}


@cache
def placed(family: str, layout: str, name: str) -> tuple[int, int]:
    """Count the sorts of layers that a kind is made for and finds, and those that it is made for."""
    base, modules = layers(family, layout)
    kind, form, config = FORMS[name]
    found = due = 0
    for path, shape in modules.items():
        slots = form(shape)
        if slots is None:
            continue
        due += 1
        start = PEFT if config else ""
        shapes = {
            key if key.startswith("base_model.") else f"{start}{path}.{key}": size for key, size in slots.items()
        }
        tensors = infos(dict(shapes))
        try:
            patches, ledger = matched(base, source(tensors, config=config))
        except MatchError:
            continue
        view = base.spelled[start + path][0].views["weight"]
        assert ledger.applied == len(shapes), (path, ledger)
        found += [(patch.kind.name, patch.view.regions) for patch in patches if patch.kind.parameter == "weight"] == [
            (kind, view.regions)
        ]
    return found, due


@pytest.mark.parametrize("family", GOLD)
def test_every_kind_is_placed_on_every_sort_of_layer(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseNames, "nearest", lambda *_: "")
    for layout in bases(family):
        for name in FORMS:
            found, due = placed(family, layout, name)
            assert found == due, (layout, name)


def test_every_kind_is_there() -> None:
    assert {kind for kind, _, _ in FORMS.values()} | ELSEWHERE == {kind.name for kind in kinds()}


def page() -> str:
    """Write docs/coverage.md."""
    letters = {name: str(number) for number, name in enumerate(FORMS, 1)}
    rows = []
    for family in GOLD:
        layout = next(iter(bases(family)))
        cells = [placed(family, layout, name) for name in FORMS]
        rows.append(f"| {family} | {' | '.join(str(found) if due else '' for found, due in cells)} |")
    total = sum(cell.strip().isdigit() for row in rows for cell in row.split("|")[2:])
    lines = [
        "# Kinds and families",
        "",
        "The number in each cell counts sorts of layers: layers of one network whose shapes are equal, and whose",
        "names are equal but for numbers. An adapter of this kind finds its place on so many sorts of layers of",
        f"this family. If a kind is made for no layer of the network, the cell is empty. There are {len(FORMS)}",
        f"kinds, {len(GOLD)} families and {total} cells. `tests/test_coverage.py` tests every cell in each layout",
        "of the family, and writes this page. [kinds.md](kinds.md) says what each kind does to a weight.",
        "[formats.md](formats.md) says whose files are read.",
        "",
        "| | kind |",
        "|---|---|",
        *(f"| {letters[name]} | {name} |" for name in FORMS),
        "",
        f"| family | {' | '.join(letters.values())} |",
        "|---|" + "---|" * len(FORMS),
        *rows,
        "",
    ]
    return "\n".join(lines)


def test_the_page_says_what_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseNames, "nearest", lambda *_: "")
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.test_coverage"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
