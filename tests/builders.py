"""Tiny checkpoints and LoRAs with real key names, and the float64 arithmetic that a bake must agree with.

Names are written here by small loops, apart from lorabake's own tables: a test that read those would only
compare the program with itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from lorabake.baking import bake
from lorabake.options import RunOptions
from lorabake.recipe import load_recipe
from lorabake.results import BakeResult
from lorabake.verification.findings import Status, Verification

Tensors = dict[str, torch.Tensor]
Slots = dict[str, torch.Tensor]

W, CONTEXT, TIME, TEXT = 8, 12, 16, 8
"""Widths of the UNet, of its context, of its time embedding and of the text encoders."""

CONFIG = {"_class_name": "UNet2DConditionModel", "in_channels": 4}


class Values:
    """Make tensors of normally distributed values, the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=self.generator) * size).to(dtype)


# -- Checkpoints: (name in the single file, name in the diffusers folder) -> shape -------------------

Named = Iterator[tuple[str, str, tuple[int, ...]]]


def _linear(ldm: str, hf: str, rows: int, columns: int, *, bias: bool = True) -> Named:
    yield f"{ldm}.weight", f"{hf}.weight", (rows, columns)
    if bias:
        yield f"{ldm}.bias", f"{hf}.bias", (rows,)


def _conv(ldm: str, hf: str, rows: int, columns: int, kernel: int = 3) -> Named:
    yield f"{ldm}.weight", f"{hf}.weight", (rows, columns, kernel, kernel)
    yield f"{ldm}.bias", f"{hf}.bias", (rows,)


def _norm(ldm: str, hf: str, size: int) -> Named:
    yield f"{ldm}.weight", f"{hf}.weight", (size,)
    yield f"{ldm}.bias", f"{hf}.bias", (size,)


def _resnet(ldm: str, hf: str, rows: int, columns: int) -> Named:
    yield from _norm(f"{ldm}.in_layers.0", f"{hf}.norm1", columns)
    yield from _conv(f"{ldm}.in_layers.2", f"{hf}.conv1", rows, columns)
    yield from _linear(f"{ldm}.emb_layers.1", f"{hf}.time_emb_proj", rows, TIME)
    yield from _norm(f"{ldm}.out_layers.0", f"{hf}.norm2", rows)
    yield from _conv(f"{ldm}.out_layers.3", f"{hf}.conv2", rows, rows)
    if rows != columns:
        yield from _conv(f"{ldm}.skip_connection", f"{hf}.conv_shortcut", rows, columns, 1)


def _attention(ldm: str, hf: str, *, linear: bool) -> Named:
    yield from _norm(f"{ldm}.norm", f"{hf}.norm", W)
    for name in ("proj_in", "proj_out"):
        if linear:
            yield from _linear(f"{ldm}.{name}", f"{hf}.{name}", W, W)
        else:
            yield from _conv(f"{ldm}.{name}", f"{hf}.{name}", W, W, 1)
    block = "transformer_blocks.0"
    for name, inputs in (("attn1", W), ("attn2", CONTEXT)):
        for part, columns in (("to_q", W), ("to_k", inputs), ("to_v", inputs)):
            path = f"{block}.{name}.{part}"
            yield from _linear(f"{ldm}.{path}", f"{hf}.{path}", W, columns, bias=False)
        yield from _linear(f"{ldm}.{block}.{name}.to_out.0", f"{hf}.{block}.{name}.to_out.0", W, W)
    yield from _linear(f"{ldm}.{block}.ff.net.0.proj", f"{hf}.{block}.ff.net.0.proj", 8 * W, W)
    yield from _linear(f"{ldm}.{block}.ff.net.2", f"{hf}.{block}.ff.net.2", W, 4 * W)
    for name in ("norm1", "norm2", "norm3"):
        yield from _norm(f"{ldm}.{block}.{name}", f"{hf}.{block}.{name}", W)


def _ends(inputs: int = 4) -> Named:
    yield from _linear("time_embed.0", "time_embedding.linear_1", TIME, W)
    yield from _linear("time_embed.2", "time_embedding.linear_2", TIME, TIME)
    yield from _conv("input_blocks.0.0", "conv_in", W, inputs)
    yield from _norm("out.0", "conv_norm_out", W)
    yield from _conv("out.2", "conv_out", 4, W)


def sd1_unet() -> Named:
    """List a thinned UNet: each sort of block once, under its real number."""
    yield from _ends()
    yield from _resnet("input_blocks.1.0", "down_blocks.0.resnets.0", W, W)
    yield from _attention("input_blocks.1.1", "down_blocks.0.attentions.0", linear=False)
    yield from _conv("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv", W, W)
    yield from _attention("middle_block.1", "mid_block.attentions.0", linear=False)
    yield from _resnet("output_blocks.11.0", "up_blocks.3.resnets.2", W, 2 * W)
    yield from _attention("output_blocks.11.1", "up_blocks.3.attentions.2", linear=False)


def sdxl_unet() -> Named:
    """List a thinned UNet of three levels with linear projections."""
    yield from _ends()
    yield from _linear("label_emb.0.0", "add_embedding.linear_1", TIME, W)
    yield from _linear("label_emb.0.2", "add_embedding.linear_2", TIME, TIME)
    yield from _resnet("input_blocks.4.0", "down_blocks.1.resnets.0", W, W)
    yield from _attention("input_blocks.4.1", "down_blocks.1.attentions.0", linear=True)
    yield from _attention("output_blocks.0.1", "up_blocks.0.attentions.0", linear=True)


def clip(layers: int = 2) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List transformers' CLIP text encoder."""
    yield "text_model.embeddings.token_embedding.weight", (20, TEXT)
    yield "text_model.embeddings.position_embedding.weight", (6, TEXT)
    for index in range(layers):
        block = f"text_model.encoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{block}.self_attn.{name}.weight", (TEXT, TEXT)
            yield f"{block}.self_attn.{name}.bias", (TEXT,)
        for name, shape in (("mlp.fc1", (4 * TEXT, TEXT)), ("mlp.fc2", (TEXT, 4 * TEXT))):
            yield f"{block}.{name}.weight", shape
            yield f"{block}.{name}.bias", shape[:1]
        for name in ("layer_norm1", "layer_norm2"):
            yield f"{block}.{name}.weight", (TEXT,)
            yield f"{block}.{name}.bias", (TEXT,)
    yield "text_model.final_layer_norm.weight", (TEXT,)
    yield "text_model.final_layer_norm.bias", (TEXT,)


def openclip(layers: int = 2) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List OpenCLIP's text encoder: q, k and v in one, text_projection as (in, out)."""
    yield "positional_embedding", (6, TEXT)
    yield "text_projection", (TEXT, TEXT + 2)
    yield "logit_scale", ()
    yield "token_embedding.weight", (20, TEXT)
    for index in range(layers):
        block = f"transformer.resblocks.{index}"
        yield f"{block}.attn.in_proj_weight", (3 * TEXT, TEXT)
        yield f"{block}.attn.in_proj_bias", (3 * TEXT,)
        for name, shape in (
            ("attn.out_proj", (TEXT, TEXT)),
            ("mlp.c_fc", (4 * TEXT, TEXT)),
            ("mlp.c_proj", (TEXT, 4 * TEXT)),
        ):
            yield f"{block}.{name}.weight", shape
            yield f"{block}.{name}.bias", shape[:1]
        for name in ("ln_1", "ln_2"):
            yield f"{block}.{name}.weight", (TEXT,)
            yield f"{block}.{name}.bias", (TEXT,)
    yield "ln_final.weight", (TEXT,)
    yield "ln_final.bias", (TEXT,)


def vae() -> Named:
    """List a thinned AutoencoderKL; its attention projections are 1×1 convolutions in the LDM names only."""

    def resnet(ldm: str, hf: str, rows: int, columns: int) -> Named:
        yield from _norm(f"{ldm}.norm1", f"{hf}.norm1", columns)
        yield from _conv(f"{ldm}.conv1", f"{hf}.conv1", rows, columns)
        yield from _norm(f"{ldm}.norm2", f"{hf}.norm2", rows)
        yield from _conv(f"{ldm}.conv2", f"{hf}.conv2", rows, rows)
        if rows != columns:
            yield from _conv(f"{ldm}.nin_shortcut", f"{hf}.conv_shortcut", rows, columns, 1)

    for side, first, second in (
        ("encoder", ("down.0.block.0", "down_blocks.0.resnets.0"), ("down.1.block.0", "down_blocks.1.resnets.0")),
        ("decoder", ("up.0.block.0", "up_blocks.3.resnets.0"), ("up.1.block.0", "up_blocks.2.resnets.0")),
    ):
        yield from _conv(f"{side}.conv_in", f"{side}.conv_in", 4, 4)
        yield from resnet(f"{side}.{first[0]}", f"{side}.{first[1]}", 4, 4)
        yield from resnet(f"{side}.{second[0]}", f"{side}.{second[1]}", 8, 4)
        yield from _norm(f"{side}.mid.attn_1.norm", f"{side}.mid_block.attentions.0.group_norm", 8)
        for ldm, hf in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
            yield from _conv(f"{side}.mid.attn_1.{ldm}", f"{side}.mid_block.attentions.0.{hf}", 8, 8, 1)
        yield from _norm(f"{side}.norm_out", f"{side}.conv_norm_out", 8)
        yield from _conv(f"{side}.conv_out", f"{side}.conv_out", 4, 8)
    yield from _conv("quant_conv", "quant_conv", 4, 4, 1)


def _vae_shape(hf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the kernel where diffusers has a linear layer."""
    return shape[:2] if ".mid_block.attentions." in hf and len(shape) == 4 else shape


def sd1(*, seed: int = 0, dtype: torch.dtype = torch.float16, extras: bool = True, ema: bool = False) -> Tensors:
    """Make SD 1.x in the LDM layout; `extras` are buffers, position ids and a marker."""
    values = Values(seed)
    made: Tensors = {}
    if extras:
        made["alphas_cumprod"] = torch.linspace(1, 0, 10)
        made["betas"] = torch.linspace(0, 1, 10)
        made["v_pred"] = torch.empty(0)
        made["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(6).reshape(1, 6)
    for ldm, _, shape in sd1_unet():
        made[f"model.diffusion_model.{ldm}"] = values(*shape, dtype=dtype)
    for name, shape in clip():
        made[f"cond_stage_model.transformer.{name}"] = values(*shape, dtype=dtype)
    for ldm, _, shape in vae():
        made[f"first_stage_model.{ldm}"] = values(*shape, dtype=dtype)
    if ema:
        made["model_ema.decay"] = torch.tensor(0.9999)
        for ldm, _, shape in sd1_unet():
            made["model_ema.diffusion_model" + ldm.replace(".", "")] = values(*shape)
    return made


def sdxl(*, seed: int = 0, dtype: torch.dtype = torch.float16) -> Tensors:
    """Make SDXL in the SGM layout, with OpenCLIP's fused attention and its transposed projection."""
    values = Values(seed)
    made = {f"model.diffusion_model.{ldm}": values(*shape, dtype=dtype) for ldm, _, shape in sdxl_unet()}
    for name, shape in clip():
        made[f"conditioner.embedders.0.transformer.{name}"] = values(*shape, dtype=dtype)
    for name, shape in openclip():
        made[f"conditioner.embedders.1.model.{name}"] = values(*shape, dtype=dtype)
    for ldm, _, shape in vae():
        made[f"first_stage_model.{ldm}"] = values(*shape, dtype=dtype)
    return made


def vae_file(layout: str, *, seed: int, dtype: torch.dtype = torch.float16, prefix: str = "") -> Tensors:
    """Make a VAE of its own, "ldm" or "diffusers"; one seed gives one VAE in both layouts."""
    values = Values(seed)
    made: Tensors = {}
    for ldm, hf, shape in vae():
        tensor = values(*shape, dtype=dtype)
        made[prefix + (ldm if layout == "ldm" else hf)] = (
            tensor if layout == "ldm" else tensor.reshape(_vae_shape(hf, shape))
        )
    return made


def sd1_folder(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float16, variant: str = ""
) -> dict[str, Tensors]:
    """Make the same SD 1.x as a diffusers folder with side files; return each component's tensors."""
    values = Values(seed)
    parts: dict[str, Tensors] = {
        "unet": {hf: values(*shape, dtype=dtype) for _, hf, shape in sd1_unet()},
        "text_encoder": {name: values(*shape, dtype=dtype) for name, shape in clip()},
        "vae": {hf: values(*shape, dtype=dtype).reshape(_vae_shape(hf, shape)) for _, hf, shape in vae()},
    }
    dot = f".{variant}" if variant else ""
    index: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for name, tensors in parts.items():
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        save(folder / name / f"{stem}{dot}.safetensors", tensors, metadata={"format": "pt", "of": name})
        (folder / name / "config.json").write_text(json.dumps({"of": name}))
        index[name] = ["diffusers", "Model"]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(index))
    return parts


def llama(folder: Path, *, shards: int = 1, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensors:
    """Make a Llama in a transformers folder, in one file or in shards with an index."""
    values = Values(seed)
    made = {"model.embed_tokens.weight": values(20, 8, dtype=dtype)}
    for index in range(2):
        block = f"model.layers.{index}"
        for name, rows, columns in (
            ("self_attn.q_proj", 8, 8),
            ("self_attn.k_proj", 4, 8),
            ("self_attn.v_proj", 4, 8),
            ("self_attn.o_proj", 8, 8),
            ("mlp.gate_proj", 16, 8),
            ("mlp.up_proj", 16, 8),
            ("mlp.down_proj", 8, 16),
        ):
            made[f"{block}.{name}.weight"] = values(rows, columns, dtype=dtype)
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{block}.{name}.weight"] = values(8, dtype=dtype)
    made["model.norm.weight"] = values(8, dtype=dtype)
    made["lm_head.weight"] = values(20, 8, dtype=dtype)
    save_shards(folder, "model", made, shards)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    return made


def gpt2(*, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    """Make GPT-2, whose Conv1D layers store (in, out)."""
    values = Values(seed)
    made = {"wte.weight": values(20, 8, dtype=dtype), "wpe.weight": values(6, 8, dtype=dtype)}
    for name, inputs, outputs in (
        ("attn.c_attn", 8, 24),
        ("attn.c_proj", 8, 8),
        ("mlp.c_fc", 8, 32),
        ("mlp.c_proj", 32, 8),
    ):
        made[f"h.0.{name}.weight"] = values(inputs, outputs, dtype=dtype)
        made[f"h.0.{name}.bias"] = values(outputs, dtype=dtype)
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        made[f"{name}.weight"] = values(8, dtype=dtype)
        made[f"{name}.bias"] = values(8, dtype=dtype)
    return made


# -- LoRAs -------------------------------------------------------------------------------------------


def lora(
    shape: tuple[int, ...],
    *,
    rank: int = 2,
    alpha: float | None = None,
    alpha_dtype: torch.dtype = torch.float32,
    alpha_shape: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    conv: bool | None = None,
    tucker: bool = False,
    dora: str | None = None,
    size: float = 0.5,
) -> Slots:
    """Make one module's slots for a weight (out, in[, kh, kw]).

    `conv` writes the factors with a kernel's dimensions (by default where the weight has them), `dora` adds
    "magnitude" (out), "row" (a dora_scale (out, 1 …)) or "column" (1, in …).
    """
    values = Values(seed)
    rows, columns, *kernel = shape
    ones = [1] * (len(kernel) if kernel else 2) if (bool(kernel) if conv is None else conv) else []
    slots: Slots = {}
    if tucker:
        slots["up"] = values(rows, rank, *ones, dtype=dtype, size=size)
        slots["mid"] = values(rank, rank, *kernel, dtype=dtype, size=size)
        slots["down"] = values(rank, columns, *ones, dtype=dtype, size=size)
    else:
        slots["up"] = values(rows, rank, *ones, dtype=dtype, size=size)
        slots["down"] = values(rank, columns, *(kernel if ones and kernel else ones), dtype=dtype, size=size)
    if alpha is not None:
        slots["alpha"] = torch.full(alpha_shape, alpha, dtype=alpha_dtype)
    match dora:
        case "magnitude":
            slots["magnitude"] = values(rows, dtype=dtype).abs() + 0.5
        case "row":
            slots["dora_scale"] = (values(rows, 1, *([1] * len(kernel)), dtype=dtype)).abs() + 0.5
        case "column":
            slots["dora_scale"] = (values(1, columns, *([1] * len(kernel)), dtype=dtype)).abs() + 0.5
    return slots


KOHYA = {
    "up": ".lora_up.weight",
    "down": ".lora_down.weight",
    "mid": ".lora_mid.weight",
    "alpha": ".alpha",
    "dora_scale": ".dora_scale",
}
PEFT = {
    "up": ".lora_B.weight",
    "down": ".lora_A.weight",
    "magnitude": ".lora_magnitude_vector",
    "bias": ".lora_B.bias",
    "whole": ".weight",
    "whole_bias": ".bias",
}


def kohya(path: Path, modules: Mapping[str, Slots], metadata: dict[str, str] | None = None) -> Path:
    """Write a LoRA as kohya's trainers do; names such as `lora_unet_…` come from the caller."""
    tensors = {name + KOHYA[slot]: tensor for name, slots in modules.items() for slot, tensor in slots.items()}
    return save(path, tensors, metadata=metadata)


def diffusers(path: Path, modules: Mapping[str, Slots]) -> Path:
    """Write a LoRA as diffusers does: `unet.down_blocks….lora_A.weight`."""
    tensors = {name + PEFT[slot]: tensor for name, slots in modules.items() for slot, tensor in slots.items()}
    return save(path, tensors)


def peft(folder: Path, modules: Mapping[str, Slots], **config: object) -> Path:
    """Write a PEFT folder; `config` goes to adapter_config.json."""
    tensors = {
        f"base_model.model.{name}{PEFT[slot]}": tensor
        for name, slots in modules.items()
        for slot, tensor in slots.items()
    }
    save(folder / "adapter_model.safetensors", tensors, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}))
    return folder


def unet_lora(name: str) -> str:
    """Flatten a diffusers path of the UNet to kohya's name."""
    return "lora_unet_" + name.replace(".", "_")


Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
K2 = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
FF = "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj"
PROJ_IN = "down_blocks.0.attentions.0.proj_in"
CONV = "down_blocks.0.resnets.0.conv1"
TE_Q = "text_model.encoder.layers.0.self_attn.q_proj"

SD1_KEYS = {
    Q: "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    K2: "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    FF: "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
    PROJ_IN: "model.diffusion_model.input_blocks.1.1.proj_in.weight",
    CONV: "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
    TE_Q: f"cond_stage_model.transformer.{TE_Q}.weight",
}
"""Modules by their diffusers name, and where the single file keeps their weight."""


def sd1_lora(
    path: Path, *, seed: int = 1, rank: int = 2, alpha: float | None = 1.0, **options: object
) -> dict[str, Slots]:
    """Write a kohya LoRA on a linear, a wide, a convolution and a text encoder layer of SD 1.x."""
    shapes = {Q: (W, W), FF: (8 * W, W), CONV: (W, W, 3, 3), TE_Q: (TEXT, TEXT)}
    made = {
        name: lora(shape, seed=seed + number, rank=rank, alpha=alpha, **options)  # type: ignore[arg-type]
        for number, (name, shape) in enumerate(shapes.items())
    }
    kohya(path, {("lora_te_" + n.replace(".", "_") if n == TE_Q else unet_lora(n)): s for n, s in made.items()})
    return made


# -- Files ---------------------------------------------------------------------------------------------


def save(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Write a SafeTensors file with the library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path


def save_shards(folder: Path, stem: str, tensors: Tensors, shards: int) -> None:
    """Write tensors in as many shards, with an index if there are several."""
    if shards == 1:
        save(folder / f"{stem}.safetensors", tensors, metadata={"format": "pt"})
        return
    keys = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05}-of-{shards:05}.safetensors"
        own = keys[number * len(keys) // shards : (number + 1) * len(keys) // shards]
        save(folder / name, {key: tensors[key] for key in own}, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def header(path: Path) -> tuple[dict[str, dict[str, object]], dict[str, str], bytes]:
    """Read a file by hand: its entries in the JSON's order, its metadata, and the data."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    metadata = entries.pop("__metadata__", {})
    return entries, metadata, raw[8 + length :]


def tensor_bytes(path: Path) -> dict[str, bytes]:
    """Read each tensor's bytes by hand."""
    entries, _, data = header(path)
    return {key: data[slice(*entry["data_offsets"])] for key, entry in entries.items()}  # type: ignore[misc]


def sha256(path: Path) -> str:
    """Digest a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def recipe(folder: Path, **fields: object) -> Path:
    """Write `recipe.yaml`; by default it bakes base.safetensors with lora.safetensors into out.safetensors."""
    output = fields.pop("output", {})
    assert isinstance(output, dict)
    content = {
        "version": 1,
        "base": "base.safetensors",
        "loras": ["lora.safetensors"],
        **fields,
        "output": {"path": "out.safetensors", **output},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run(path: Path, **options: object) -> BakeResult:
    """Bake a recipe file."""
    return bake(load_recipe(path), RunOptions(**{"fsync": False, "force": True, "overwrite": True, **options}))  # type: ignore[arg-type]


def bake_sd1(folder: Path, **fields: object) -> Path:
    """Bake `base.safetensors` with a recipe made of `fields`; return the output's path."""
    return run(recipe(folder, **fields)).path


# -- What a bake must agree with -------------------------------------------------------------------------


def delta(slots: Mapping[str, torch.Tensor], shape: tuple[int, ...], scale: float | None = None) -> torch.Tensor:
    """Compute scale·B·A in float64, by sums over the indices of the published formulas."""
    up = slots["up"].double().flatten(1)
    rank = slots["down"].shape[0]
    if "mid" in slots:
        down = slots["down"].double().flatten(1)
        made = torch.einsum("om,mnyx,ni->oiyx", up, slots["mid"].double(), down)
    else:
        made = torch.einsum("or,rc->oc", up, slots["down"].double().flatten(1))
    if scale is None:
        scale = float(slots["alpha"].double().reshape(())) / rank if "alpha" in slots else 1.0
    return made.reshape(shape) * scale


def dora(weight: torch.Tensor, slots: Mapping[str, torch.Tensor], scale: float | None = None) -> torch.Tensor:
    """Compute what DoRA makes of a weight at strength 1, in float64."""
    changed = weight.double() + delta(slots, tuple(weight.shape), scale)
    magnitude = slots.get("magnitude", slots.get("dora_scale")).double()  # type: ignore[union-attr]
    rest = [1] * (weight.ndim - 2)
    by_row = "magnitude" in slots or magnitude.shape[0] == weight.shape[0]
    axes = tuple(range(1, weight.ndim)) if by_row else (0, *range(2, weight.ndim))
    norm = changed.square().sum(dim=axes, keepdim=True).sqrt()
    return changed / norm * magnitude.reshape((-1, 1, *rest) if by_row else (1, -1, *rest))


MANTISSA = {
    torch.float8_e4m3fn: (3, -6),
    torch.float8_e5m2: (2, -14),
    torch.float16: (10, -14),
    torch.bfloat16: (7, -126),
    torch.float32: (23, -126),
}


def ulp(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the distance between neighbours of a dtype around values, in float64."""
    bits, least = MANTISSA[dtype]
    exponent = torch.frexp(exact.double().abs()).exponent.double() - 1
    return torch.exp2(exponent.clamp(min=least) - bits)


def assert_rounded_once(
    actual: torch.Tensor, exact: torch.Tensor, *, terms: Iterable[torch.Tensor] = (), exactly: bool = False
) -> None:
    """Check that values are the exact ones, computed in float32 and rounded once.

    They may be half a unit of their dtype off, plus what float32 loses on sums of this size: a few units of the
    largest `terms`. With `exactly` (float64 arithmetic) only the rounding may differ.
    """
    assert actual.shape == exact.shape
    size = exact.abs() + sum((term.double().abs() for term in terms), torch.zeros_like(exact))
    slack = (2.0**-45 if exactly else 2.0**-21) * (size + size.mean())
    off = (actual.double() - exact).abs()
    allowed = 0.5 * ulp(exact, actual.dtype) + slack
    worst = (off - allowed).argmax()
    assert bool((off <= allowed).all()), (
        f"off by {off.flatten()[worst]:g} where {allowed.flatten()[worst]:g} is allowed, "
        f"exact {exact.flatten()[worst]:g}"
    )


def assert_right(verification: Verification) -> None:
    """Ask that every finding pass, but for the warning that a LoRA of a test is larger than what it changes."""
    odd = [each for each in verification.findings if each.status is not Status.PASS and each.check != "weights.large"]
    assert verification.findings
    assert not odd, odd
