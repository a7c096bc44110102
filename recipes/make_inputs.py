"""Make the small inputs of the image recipes: a Stable Diffusion 1.x checkpoint and three LoRAs for it.

    python recipes/make_inputs.py [FOLDER]        (FOLDER is recipes/inputs unless given)

The checkpoint has every tensor of a real single-file SD 1.5 (UNet, text encoder, VAE, noise schedule), each
under its real name, at a sixteenth or twentieth of its width: 6 MB instead of 2 GB. Its values are random,
seeded by name, so it paints nothing; lorabake treats it as it treats the real one.
"""

# ruff: noqa: T201

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lorabake.tensors.safetensors import encode_header

HERE = Path(__file__).resolve().parent
LAYOUT = HERE.parent / "benchmarks" / "layouts" / "sd15.json.gz"
DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64}

# Real width -> ours. UNet: a twentieth; text encoder and VAE: a sixteenth; vocabulary: 512 words.
WIDTHS = {320: 16, 640: 32, 960: 48, 1280: 64, 1920: 96, 2560: 128, 5120: 256, 10240: 512}
WIDTHS |= {768: 48, 3072: 192, 49408: 512, 128: 8, 256: 16, 512: 32}

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]


def main() -> None:
    """Write all four files, unless told otherwise beside this script."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    layout = json.loads(gzip.decompress(LAYOUT.read_bytes()))
    modules = {name: small(shape) for name, (_, shape) in layout["modules"].items()}
    plain = {name for name, (kind, _) in layout["modules"].items() if kind == "lora"}

    write(folder / "small_sd.safetensors", dict(checkpoint(layout["tensors"])), {"format": "pt"})
    ink = {name: shape for name, shape in modules.items() if name in plain}
    about = {
        "ss_base_model_version": "sd_v1-5",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_tag_frequency": json.dumps({"10_ink": {"ink drawing": 40, "1girl": 12, "crosshatching": 9}}),
    }
    write(folder / "ink_style.safetensors", dict(kohya(ink, "ink", rank=4, alpha=2.0)), about)
    write(folder / "knight.safetensors", dict(diffusers(modules, "knight", rank=8)), {"format": "pt"})
    unet = {name: shape for name, shape in modules.items() if name.startswith("lora_unet_")}
    write(folder / "texture_locon.safetensors", dict(kohya(unet, "texture", rank=4, alpha=1.0)), {})


def small(shape: list[int]) -> Shape:
    """Shrink every width of a shape; channels, kernels and the schedule's 1000 steps stay."""
    return tuple(WIDTHS.get(size, size) for size in shape)


def noise(name: str, shape: Shape, size: float, dtype: str = "F16") -> np.ndarray:
    """Draw values that depend on the tensor's name alone."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return (random.standard_normal(shape, dtype=np.float32) * size).astype(DTYPES[dtype])


def checkpoint(tensors: dict[str, tuple[str, list[int]]]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the checkpoint's tensors, in the real file's order."""
    for name, (dtype, real) in tensors.items():
        shape = small(real)
        if name.endswith("position_ids"):
            yield name, np.arange(77, dtype=np.int64)[None]
        elif len(shape) > 1:
            yield name, noise(name, shape, float(np.prod(shape[1:])) ** -0.5, dtype)
        else:
            gain = 1 if ".weight" in name else 0
            yield name, noise(name, shape, 0.02, dtype) + DTYPES[dtype](gain)


def factors(seed: str, shape: Shape, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw (down, up); a convolution's kernel goes into down: (rank, in, kh, kw) and (out, rank, 1, 1)."""
    kernel = (1,) * (len(shape) - 2)
    down = noise(seed + "down", (rank, *shape[1:]), 0.1)
    return down, noise(seed + "up", (shape[0], rank, *kernel), 0.1)


def kohya(modules: dict[str, Shape], seed: str, rank: int, alpha: float) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a LoRA as kohya's trainers and LyCORIS name it: dots as underscores, one alpha a module."""
    for name, shape in modules.items():
        down, up = factors(seed + name, shape, rank)
        yield f"{name}.alpha", np.array(alpha, dtype=np.float16)
        yield f"{name}.lora_down.weight", down
        yield f"{name}.lora_up.weight", up


def diffusers(modules: dict[str, Shape], seed: str, rank: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a LoRA on attention as diffusers names it: `unet.….to_q.lora_A.weight`, no alpha."""
    blocks = [f"down_blocks.{level}.attentions.{i}" for level in range(3) for i in range(2)]
    blocks += ["mid_block.attentions.0"]
    blocks += [f"up_blocks.{level}.attentions.{i}" for level in range(1, 4) for i in range(3)]
    paths = [
        f"{block}.transformer_blocks.0.{attention}.{part}"
        for block in blocks
        for attention in ("attn1", "attn2")
        for part in ("to_q", "to_k", "to_v", "to_out.0")
    ]
    texts = [
        f"text_model.encoder.layers.{layer}.self_attn.{part}"
        for layer in range(12)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj")
    ]
    named = [("unet.", "lora_unet_", path) for path in paths]
    named += [("text_encoder.", "lora_te_", path) for path in texts]
    for prefix, flat, path in named:
        down, up = factors(seed + path, modules[flat + path.replace(".", "_")], rank)
        yield f"{prefix}{path}.lora_A.weight", down
        yield f"{prefix}{path}.lora_B.weight", up


def write(path: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    """Write a SafeTensors file; the widest dtypes come first, as the format's alignment wants it."""
    names = {DTYPES[name]: name for name in DTYPES}
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    entries = [(key, names[array.dtype.type], array.shape) for key, array in arrays.items()]
    with path.open("wb") as file:
        file.write(encode_header(entries, metadata))
        for array in arrays.values():
            file.write(array.tobytes())
    print(f"{path.name}: {len(arrays)} tensors, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
