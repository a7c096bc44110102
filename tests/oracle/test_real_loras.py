"""Published LoRA files: each is placed whole on a base of its family, and what is baked is their product.

The files lie beside the repository, in ../shared; where they don't, these tests are skipped.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import lorabake  # noqa: E402
from lorabake.errors import MatchError  # noqa: E402
from lorabake.tensors.safetensors import encode_header  # noqa: E402

SHARED = Path(__file__).parents[3] / "shared"
LORAS = SHARED / "loras"
NEW_TOKENS = 60
HALF_ULP = 2.0**-11  # of float16, at most, relative to the value
pytestmark = pytest.mark.skipif(not LORAS.is_dir(), reason="needs the real files of ../shared/loras")


# -- bases: the key table of a published checkpoint over a hole of zeros ------------------------------------

SIZES = {"F16": 2, "I32": 4, "I64": 8}
# name -> (key tables, those of their keys that are kept)
BASES = {
    "sd15": (["full_sd15_singlefile_1131"], ""),
    "sd15_with_ema": (["full_sd15_singlefile_with_ema_and_buffers"], ""),
    "sd15_attention": (
        ["full_sd15_singlefile_1131"],
        r".*\.(transformer_blocks|proj_in|encoder\.layers)\.",
    ),  # 0.6 GB
    "sd15_unet": (["diffusers_sd15_unet"], ""),
    "sd21": (["arenasys_unet_v2_sd", "arenasys_clip_v2_sd"], ""),
    "sd21_unet": (["diffusers_sd21_unet"], ""),
    "sdxl": (["full_sdxl_singlefile_2515"], ""),
    "clip_l": (["stripped_clip_vit_large_patch14_model"], r"text_model\."),
}


def hollow(path: Path, tables: list[str], keep: str) -> Path:
    """Write a float16 checkpoint with published keys and shapes and no data blocks: it reads as zeros."""
    rows = []
    for table in tables:
        entries = json.loads((SHARED / "headers" / f"{table}.json").read_text(encoding="utf-8"))["tensors"]
        for key, (dtype, shape) in entries.items():
            if re.match(keep, key):
                rows.append((key, dtype if dtype.startswith("I") else "F16", tuple(shape)))
    header = encode_header(rows, {})
    path.write_bytes(header)
    os.truncate(path, len(header) + sum(SIZES[dtype] * math.prod(shape) for _, dtype, shape in rows))
    return path


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("bases")

    def base(name: str) -> Path:
        path = folder / f"{name}.safetensors"
        return path if path.exists() else hollow(path, *BASES[name])

    return base


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., lorabake.Plan]:
    def make(base: Path, lora: str, **entry: Any) -> lorabake.Plan:
        recipe = {
            "version": 1,
            "base": str(base),
            "loras": [{"path": str(LORAS / lora), **entry}],
            "output": {"path": "baked.safetensors"},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
        return lorabake.plan(lorabake.load_recipe(path))

    return make


# -- every file that fits has a full ledger ----------------------------------------------------------------

DIFFUSERS = "diffusers_sd15/pytorch_lora_weights.safetensors"
PROCESSORS = "attn_procs_sd15/pytorch_lora_weights"
ANALOG = "cloneofsimo_sd15/analog_svd_rank4.safetensors"
DISNEY = "cloneofsimo_sd15/lora_disney.safetensors"
KIRIKO = "cloneofsimo_sd15/lora_kiriko"
LOKR = "lycoris_lokr_sd15/smart_falcon_4_lokr.safetensors"
SD15 = ["sd15", "sd15_with_ema", "sd15_unet"]
UNET_AND_TEXT = {"unet": 144, "text_encoder": 48}
BOTH = {"components": ["unet", "text_encoder"]}

# file, bases, what its recipe says, modules by component, rank, tensors that the recipe leaves out
FITTING: list[tuple[str, list[str], dict[str, Any], dict[str, int], int, int]] = [
    (DIFFUSERS, SD15, {}, {"unet": 128}, 4, 0),
    (f"{PROCESSORS}.safetensors", SD15, {}, {"unet": 128}, 4, 0),
    (f"{PROCESSORS}.bin", SD15, {}, {"unet": 128}, 4, 0),
    (ANALOG, SD15[:2], {}, UNET_AND_TEXT, 4, 0),
    (DISNEY, SD15[:2], BOTH, UNET_AND_TEXT, 1, 2),
    (f"{KIRIKO}.pt", ["sd21", "sd21_unet"], {}, {"unet": 128}, 4, 0),
    (f"{KIRIKO}.text_encoder.pt", ["sd21"], {}, {"text_encoder": 92}, 4, 0),
    ("peft_clip/sd15_text_encoder", ["sd15", "clip_l", "sdxl"], {}, {"text_encoder": 24}, 8, 0),
    ("peft_clip/sdxl_text_encoder", ["sd15", "clip_l", "sdxl"], {}, {"text_encoder": 24}, 8, 0),
]


@pytest.mark.parametrize(
    ("lora", "base", "entry", "modules", "rank", "left_out"),
    [pytest.param(lora, base, *rest, id=f"{lora}-{base}") for lora, bases, *rest in FITTING for base in bases],
)
def test_every_tensor_has_its_place(
    lora: str,
    base: str,
    entry: dict[str, Any],
    modules: dict[str, int],
    rank: int,
    left_out: int,
    base_of: Any,
    plan: Any,
) -> None:
    (ledger,) = plan(base_of(base), lora, **entry).ledgers
    applied = 2 * sum(modules.values())
    assert ledger.is_balanced
    assert (ledger.tensors, ledger.applied, sum(ledger.excluded.values())) == (applied + left_out, applied, left_out)
    assert ledger.modules == modules
    assert ledger.ranks == {rank: applied // 2}


@pytest.mark.parametrize("base", SD15[:2])
def test_learned_embeddings_get_files_of_their_own(base: str, base_of: Any, plan: Any) -> None:
    planned = plan(base_of(base), DISNEY)
    assert [each.path.name for each in planned.embeddings] == ["baked.s1.safetensors", "baked.s2.safetensors"]
    assert [[vectors.shape for vectors in each.vectors] for each in planned.embeddings] == [[(1, 768)]] * 2
    assert (planned.ledgers[0].applied, planned.ledgers[0].tensors) == (384, 386)


@pytest.mark.parametrize("base", ["sd15", "sd15_with_ema"])
def test_lokr_has_its_place(base: str, base_of: Any, plan: Any) -> None:
    (ledger,) = plan(base_of(base), LOKR).ledgers
    assert (ledger.tensors, ledger.applied) == (1750, 1750)
    assert ledger.modules == {"unet": 278, "text_encoder": 72}
    assert ledger.kinds == {"LoKr": 350}


@pytest.mark.parametrize(
    ("lora", "base", "entry", "first_line"),
    [
        (LOKR, "sdxl", {}, r"'.*' is for Stable Diffusion 1\.x \(by .*\); the base is .*"),
        (DIFFUSERS, "sd21", {}, r"'.*' is for Stable Diffusion 1\.x .*; the base is Stable Diffusion 2\.x.*"),
        (DIFFUSERS, "sdxl", {}, r"'.*' is for Stable Diffusion 1\.x .*; the base is Stable Diffusion XL.*"),
        (f"{KIRIKO}.pt", "sd15", {}, r"'.*': 128 of 128 modules have no place on the base .*"),
        (ANALOG, "sdxl", {}, r"'.*': 192 of 192 modules have no place on the base .*"),
    ],
)
def test_what_does_not_fit_is_refused(
    lora: str, base: str, entry: dict[str, Any], first_line: str, base_of: Any, plan: Any
) -> None:
    with pytest.raises(MatchError) as caught:
        plan(base_of(base), lora, **entry)
    assert re.fullmatch("LoRA " + first_line, str(caught.value).splitlines()[0])


# -- what is baked is up @ down, in its place; the places are written out here by hand ----------------------


def single_file_key(module: str) -> str:
    """Name a weight of SD1.5's UNet, given by its diffusers path, in the single-file layout."""
    side, level, number, rest = re.fullmatch(
        r"(down|up|mid)_block(?:s\.(\d))?\.attentions\.(\d)\.(.*)", module
    ).groups()  # type: ignore[union-attr]
    block = {
        "down": lambda: f"input_blocks.{1 + 3 * int(level) + int(number)}.1",
        "up": lambda: f"output_blocks.{3 * int(level) + int(number)}.1",
        "mid": lambda: "middle_block.1",
    }[side]()
    return f"model.diffusion_model.{block}.{rest}.weight"


def products_of_diffusers() -> dict[str, torch.Tensor]:
    tensors = load_file(LORAS / DIFFUSERS)
    found = {}
    for key in tensors:
        if key.endswith(".lora.up.weight"):
            path = key.removeprefix("unet.").removesuffix(".lora.up.weight").replace(".processor.", ".")
            path = re.sub(r"\.(to_[qkv]|to_out)$", lambda m: f".{m[1]}" + ".0" * (m[1] == "to_out"), path)
            down = tensors[key.replace(".up.", ".down.")]
            found[single_file_key(path)] = tensors[key].float() @ down.float()
    return found


def products_of_analog() -> dict[str, torch.Tensor]:
    """Number the layers as cloneofsimo/lora met them: each block's attention, GEGLU, cross-attention; middle last."""
    tensors = load_file(LORAS / ANALOG)
    blocks = [f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)]
    blocks += [*(f"output_blocks.{i}.1" for i in range(3, 12)), "middle_block.1"]
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    inner = [*(f"attn1.{each}" for each in layers), "ff.net.0.proj", *(f"attn2.{each}" for each in layers)]
    names = [f"model.diffusion_model.{block}.transformer_blocks.0.{each}" for block in blocks for each in inner]
    found = {f"{name}.weight": ("unet", index) for index, name in enumerate(names)}
    stem = "cond_stage_model.transformer.text_model.encoder.layers"
    attention = ["k_proj", "v_proj", "q_proj", "out_proj"]  # as transformers registers them
    names = [f"{stem}.{layer}.self_attn.{each}.weight" for layer in range(12) for each in attention]
    found |= {name: ("text_encoder", index) for index, name in enumerate(names)}
    return {
        key: tensors[f"{part}:{index}:up"].float() @ tensors[f"{part}:{index}:down"].float()
        for key, (part, index) in found.items()
    }


@pytest.mark.parametrize(
    ("lora", "products"),
    [(DIFFUSERS, products_of_diffusers), (ANALOG, products_of_analog)],
    ids=["diffusers", "analog"],
)
def test_the_product_is_baked(
    lora: str, products: Callable[[], dict[str, torch.Tensor]], base_of: Any, bake: Any
) -> None:
    """Each part of the network at a strength of its own."""
    wanted, base = products(), base_of("sd15_attention")
    strengths = {
        "*input_blocks.*": -1.0,
        "*middle_block.*": 0.3,
        "*output_blocks.[3-5].*": 0.5,
        "*output_blocks.*": 2.0,
    }
    strengths |= {"*layers.[0-5].*": 0.0} if lora == ANALOG else {}
    baked = bake(base, {"path": str(LORAS / lora), "blocks": strengths}, output="baked.safetensors")
    try:
        with safe_open(baked, "pt") as file:
            assert len(wanted) == (128 if lora == DIFFUSERS else 192)
            for key, product in wanted.items():
                tensor = file.get_tensor(key)
                strength = next((strengths[glob] for glob in strengths if fnmatchcase(key, glob)), 1.0)
                assert bool(tensor.any()) == bool(strength), key
                assert torch.allclose(tensor.float(), strength * product, rtol=1.02 * HALF_ULP, atol=2.0**-25), key
            others = [key for key in file.keys() if key not in wanted]  # noqa: SIM118
            for key in others[::7]:
                assert not file.get_tensor(key).any(), key
    finally:
        baked.unlink()  # 0.6 GB


# -- a model that talks ------------------------------------------------------------------------------------


def test_the_story_changes(bake: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model, lora = SHARED / "models" / "stories260K", LORAS / "stories260K_dragon"
    expected = json.loads((lora / "expected.json").read_text(encoding="utf-8"))
    vocabulary = json.loads((model / "tok512_vocab.json").read_text(encoding="utf-8"))
    pieces = [entry["piece"] for entry in vocabulary]

    def tell(folder: Path) -> str:
        llama = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        prompt = torch.tensor([expected["prompt_ids"]])
        ids = llama.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS
        )
        text = "".join(pieces[index] for index in ids[0, 1:])
        return re.sub(r"<0x([0-9A-F]{2})>", lambda match: chr(int(match[1], 16)), text)

    assert tell(model) == expected["greedy_base"]
    assert tell(bake(model, lora)) == expected["greedy_merged"]
