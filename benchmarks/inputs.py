"""Make full-size inputs for the benchmarks: published names and shapes, random values.

    python -m benchmarks.inputs DIR [--only sd15|sdxl|sparse|sd15_kinds|sdxl_kinds] [--small]

`layouts/ARCH.json.gz` lists an architecture's single-file checkpoint (key → dtype, shape) and the modules
that kohya's trainers adapt (name → the plainest kind of file that has the module, shape). The values are
seeded: the same name and seed give the same bytes, whatever else is in the file. `sparse` bases are holes
behind a real header: they take no disk, and reading them costs memory like any other file. The sets of `kinds`
have other kinds of adapters, and bases whose linear weights are stored in 8 bits with scales. With `--small` all is
made of a few blocks of each architecture.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

LAYOUTS = Path(__file__).resolve().parent / "layouts"
SIZES = {"I64": 8, "F32": 4, "F16": 2, "F8_E4M3": 1, "I8": 1}
NUMPY = {"I64": np.int64, "F32": np.float32, "F16": np.float16}
# What a deviation of 1 becomes among the codes of 8 bits, so that none is beyond their range.
CODES = {"F8_E4M3": 48.0, "I8": 24.0}
# What `--small` keeps of a layout: beginnings of keys in the checkpoint, and of kohya's names.
FEW_BLOCKS = {
    "sd15": (
        ("time_embed.", "input_blocks.0.", "input_blocks.1.", "output_blocks.11.", "out."),
        (
            "lora_unet_down_blocks_0_attentions_0_",
            "lora_unet_down_blocks_0_resnets_0_",
            "lora_unet_up_blocks_3_attentions_2_",
        ),
    ),
    "sdxl": (
        ("time_embed.", "label_emb.", "input_blocks.0.", "input_blocks.4.", "out."),
        ("lora_unet_input_blocks_4_",),
    ),
}
# Values a block of noise; a prime, so that no two rows of a matrix are the same stretch of it.
BLOCK = 2**20 - 3
# kohya's names for the base a LoRA was trained on (`ss_base_model_version`).
BASE_VERSIONS = {"sd15": "sd_v1", "sdxl": "sdxl_base_v1-0"}
FILLER_SIDE = 8192


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a header says of a tensor, less its place."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Count the bytes of the data."""
        return math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Module:
    """A layer that LoRAs adapt; `kind` is "lora", or "locon" where plain LoRAs leave it out."""

    kind: str
    shape: tuple[int, ...]

    @property
    def spatial(self) -> bool:
        """Tell a convolution over more than one pixel."""
        return self.shape[2:] not in ((), (1, 1))


@dataclass(frozen=True, slots=True)
class Layout:
    """One architecture's names and shapes."""

    tensors: dict[str, Tensor]
    modules: dict[str, Module]


@dataclass(frozen=True, slots=True)
class Lora:
    """How to make one LoRA file; spatial convolutions get the rank and alpha of `conv`.

    `algorithm` is "lora", "dora" (with a length for each row) or "loha".
    """

    arch: str
    rank: int
    alpha: float
    seed: int
    conv: tuple[int, float] | None = None
    tucker: bool = False
    algorithm: str = "lora"


LORAS = {
    "sd15_r32a": Lora("sd15", 32, 16, seed=11),
    "sd15_r128": Lora("sd15", 128, 64, seed=13),
    "sd15_locon": Lora("sd15", 32, 16, seed=14, conv=(16, 8)),
    "sd15_locontk": Lora("sd15", 32, 16, seed=15, conv=(16, 8), tucker=True),
    "sdxl_r32a": Lora("sdxl", 32, 16, seed=11),
    "sdxl_r32b": Lora("sdxl", 32, 32, seed=12),
    "sdxl_r128": Lora("sdxl", 128, 64, seed=13),
    "sd15_r128b": Lora("sd15", 128, 64, seed=16),
    "sd15_r128c": Lora("sd15", 128, 64, seed=17),
    "sdxl_r128b": Lora("sdxl", 128, 64, seed=16),
    "sdxl_r128c": Lora("sdxl", 128, 64, seed=17),
    "sd15_dora": Lora("sd15", 32, 16, seed=18, algorithm="dora"),
    "sdxl_dora": Lora("sdxl", 32, 16, seed=18, algorithm="dora"),
    "sd15_loha": Lora("sd15", 16, 8, seed=19, conv=(16, 8), algorithm="loha"),
    "sdxl_loha": Lora("sdxl", 16, 8, seed=19, algorithm="loha"),
}
MEMORY_LORAS = {
    "sd15": ("sd15_r128", "sd15_r128b", "sd15_r128c"),
    "sdxl": ("sdxl_r128", "sdxl_r128b", "sdxl_r128c"),
}
SETS = {
    "sd15": ("sd15_r32a", "sd15_r128", "sd15_locon", "sd15_locontk"),
    "sdxl": ("sdxl_r32a", "sdxl_r32b", "sdxl_r128"),
    "sd15_kinds": ("sd15_dora", "sd15_loha"),
    "sdxl_kinds": ("sdxl_dora", "sdxl_loha"),
    "sparse": ("sd15_r32a", *MEMORY_LORAS["sd15"], "sdxl_r32a", *MEMORY_LORAS["sdxl"]),
}
DEFAULT_SETS = ("sd15", "sdxl", "sparse")
# Bases of a set: file name → architecture, and the dtype of its linear weights.
BASES = {
    "sd15": {"sd15": ("sd15", "F16")},
    "sdxl": {"sdxl": ("sdxl", "F16")},
    "sd15_kinds": {"sd15_fp8": ("sd15", "F8_E4M3"), "sd15_int8": ("sd15", "I8")},
    "sdxl_kinds": {"sdxl_fp8": ("sdxl", "F8_E4M3"), "sdxl_int8": ("sdxl", "I8")},
}
# Sparse bases: file name → architecture, and the bytes to reach with repeats and filler (0: just the base).
SPARSE_BASES = {
    "sparse_2gb": ("sd15", 0),
    "sparse_7gb": ("sdxl", 0),
    "sparse_20gb": ("sdxl", 20_000_000_000),
}

Values = Callable[[str, Tensor], Iterator[np.ndarray]]


def read_layout(arch: str, *, small: bool = False) -> Layout:
    """Read `layouts/ARCH.json.gz`."""
    table = json.loads(gzip.decompress((LAYOUTS / f"{arch}.json.gz").read_bytes()))
    keys, names = FEW_BLOCKS[arch] if small else (("",), ("",))
    stems = tuple(f"model.diffusion_model.{key}" if key else "" for key in keys)
    return Layout(
        {
            key: Tensor(dtype, tuple(shape))
            for key, (dtype, shape) in table["tensors"].items()
            if key.startswith(stems)
        },
        {
            name: Module(kind, tuple(shape))
            for name, (kind, shape) in table["modules"].items()
            if name.startswith(names)
        },
    )


def in_eight_bits(tensors: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Store the network's linear weights in 8 bits: float8 with one scale each, int8 with one a row."""
    stored: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        linear = key.startswith("model.diffusion_model.") and key.endswith(".weight") and len(tensor.shape) == 2
        stored[key] = Tensor(dtype, tensor.shape) if linear else tensor
        if linear and dtype == "I8":
            stored[f"{key}_scale"] = Tensor("F32", (tensor.shape[0], 1))
        elif linear:
            stored[f"{key.removesuffix('.weight')}.scale_weight"] = Tensor("F32", ())
    return stored


@lru_cache(maxsize=1)
def standard_block() -> np.ndarray:
    """Draw the block of N(0, 1) that all noise is cut from."""
    return np.random.Generator(np.random.PCG64(20_240_229)).standard_normal(BLOCK, dtype=np.float32)


@lru_cache(maxsize=48)
def scaled_block(dtype: str, mean: float, deviation: float) -> np.ndarray:
    """Scale and round the block once for all tensors that share a spread; 8 bits get codes, whatever it is."""
    if dtype in CODES:
        block = (encoded if dtype == "F8_E4M3" else np.rint)(standard_block() * np.float32(CODES[dtype]))
        return block.astype(np.uint8 if dtype == "F8_E4M3" else np.int8)
    block = (standard_block() * np.float32(deviation) + np.float32(mean)).astype(NUMPY[dtype])
    block.flags.writeable = False
    return block


def encoded(values: np.ndarray) -> np.ndarray:
    """Return the codes of the nearest values of float8 e4m3 (4 bits of exponent, bias 7; 3 of mantissa)."""
    codes = np.arange(0x7F)  # the last one is NaN
    exponents, mantissas = codes >> 3, (codes & 7) / 8
    table = np.where(exponents, (1 + mantissas) * 2.0 ** (exponents - 7), mantissas * 2.0**-6).astype(np.float32)
    nearest = np.searchsorted((table[1:] + table[:-1]) / 2, np.abs(values))
    return nearest | (np.signbit(values).astype(nearest.dtype) << 7)


def noise(seed: int, name: str, tensor: Tensor, mean: float, deviation: float) -> Iterator[np.ndarray]:
    """Yield a tensor's values: the block over and over, from a place that seed and name choose."""
    block = scaled_block(tensor.dtype, mean, deviation)
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    position, left = int.from_bytes(digest[:8], "little") % BLOCK, math.prod(tensor.shape)
    while left:
        piece = block[position : position + left]
        yield piece
        position, left = 0, left - piece.size


def base_values(seed: int, tensors: dict[str, Tensor]) -> Values:
    """Give a base's values: weights as N(0, fan_in^-1/2), the integers and schedules as sequences."""
    fan_in = {}
    for key, tensor in tensors.items():
        if tensor.dtype in CODES:
            fan_in[f"{key}_scale"] = fan_in[f"{key.removesuffix('.weight')}.scale_weight"] = tensor.shape[1]

    def values(key: str, tensor: Tensor) -> Iterator[np.ndarray]:
        if tensor.dtype == "I64":  # …text_model.embeddings.position_ids
            yield np.arange(math.prod(tensor.shape), dtype=np.int64)
        elif key.endswith("scale_weight") or key.endswith("weight_scale"):
            dtype = "I8" if key.endswith("weight_scale") else "F8_E4M3"
            yield np.full(math.prod(tensor.shape), fan_in[key] ** -0.5 / CODES[dtype], dtype=np.float32)
        elif tensor.dtype == "F32":  # betas, alphas_cumprod, …
            yield np.linspace(0.00085, 0.012, math.prod(tensor.shape), dtype=np.float32)
        elif tensor.shape == ():  # …logit_scale
            yield np.array([4.6052], NUMPY[tensor.dtype])
        elif "embedding" in key and len(tensor.shape) == 2:
            yield from noise(seed, key, tensor, 0.0, 0.02)
        elif len(tensor.shape) > 1:
            yield from noise(seed, key, tensor, 0.0, math.prod(tensor.shape[1:]) ** -0.5)
        elif key.endswith(".weight"):  # the gain of a norm
            yield from noise(seed, key, tensor, 1.0, 0.1)
        else:
            yield from noise(seed, key, tensor, 0.0, 0.02)

    return values


def lora_values(lora: Lora, layout: Layout) -> Values:
    """Give a LoRA's values: downs spread as a trainer initialises them, ups as after some training."""

    def values(key: str, tensor: Tensor) -> Iterator[np.ndarray]:
        module, _, slot = key.partition(".")
        if slot == "alpha":
            conv = lora.conv is not None and module in spatial
            yield np.array([lora.conv[1] if conv else lora.alpha], NUMPY[tensor.dtype])
        elif slot == "dora_scale":  # the weights' rows have about this length
            yield from noise(lora.seed, key, tensor, 1.0, 0.02)
        elif slot == "lora_up.weight":
            yield from noise(lora.seed, key, tensor, 0.0, 0.02)
        elif slot in ("hada_w1_a", "hada_w2_a"):  # two small products are multiplied
            yield from noise(lora.seed, key, tensor, 0.0, 0.3)
        else:
            yield from noise(lora.seed, key, tensor, 0.0, (3 * math.prod(tensor.shape[1:])) ** -0.5)

    spatial = {name for name, module in layout.modules.items() if module.spatial}
    return values


def lora_tensors(lora: Lora, layout: Layout) -> dict[str, Tensor]:
    """List a kohya LoRA's tensors: `MODULE.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    tensors: dict[str, Tensor] = {}
    for name, module in layout.modules.items():
        if module.kind == "locon" and lora.conv is None:
            continue
        rows, columns, *kernel = module.shape
        rank = min(lora.conv[0] if lora.conv and module.spatial else lora.rank, rows, columns)
        point = [1] * len(kernel)
        tensors[f"{name}.alpha"] = Tensor("F16", ())
        if lora.algorithm == "loha":
            for factor in ("w1", "w2"):
                tensors[f"{name}.hada_{factor}_a"] = Tensor("F16", (rows, rank))
                tensors[f"{name}.hada_{factor}_b"] = Tensor("F16", (rank, math.prod(module.shape[1:])))
            continue
        if lora.algorithm == "dora":
            tensors[f"{name}.dora_scale"] = Tensor("F16", (rows, 1, *point))
        down, up = (rank, columns, *kernel), (rows, rank, *point)
        if lora.tucker and module.spatial:
            down = (rank, columns, *point)
            tensors[f"{name}.lora_mid.weight"] = Tensor("F16", (rank, rank, *kernel))
        tensors[f"{name}.lora_down.weight"] = Tensor("F16", down)
        tensors[f"{name}.lora_up.weight"] = Tensor("F16", up)
    return tensors


def lora_metadata(lora: Lora) -> dict[str, str]:
    """Write what kohya's trainers note in a file, as far as readers look at it."""
    metadata = {
        "ss_base_model_version": BASE_VERSIONS[lora.arch],
        "ss_network_module": "lycoris.kohya" if lora.conv or lora.algorithm == "loha" else "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.alpha),
    }
    if lora.conv:
        rank, alpha = lora.conv
        metadata["ss_network_args"] = json.dumps({"algo": "lora", "conv_dim": str(rank), "conv_alpha": str(alpha)})
    return metadata


def grow(tensors: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """Add whole repeats under another prefix, then filler, until the data has `size` bytes."""
    once = sum(tensor.nbytes for tensor in tensors.values())
    grown, left = dict(tensors), size - once
    for number in range(left // once):
        grown |= {f"repeat_{number + 1}.{key}": tensor for key, tensor in tensors.items()}
        left -= once
    number = 0
    while left >= SIZES["F16"]:
        rows = min(FILLER_SIDE, left // (FILLER_SIDE * SIZES["F16"]))
        filler = Tensor("F16", (rows, FILLER_SIDE) if rows else (left // SIZES["F16"],))
        grown[f"filler.{number}.weight"] = filler
        left -= filler.nbytes
        number += 1
    return grown


def write_header(file: BinaryIO, tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[str]:
    """Write a SafeTensors header; return the keys in the order that the library stores them."""
    order = sorted(tensors, key=lambda key: (-SIZES[tensors[key].dtype], key))
    header: dict[str, object] = {"__metadata__": metadata}
    stop = 0
    for key in order:
        tensor, start = tensors[key], stop
        stop += tensor.nbytes
        header[key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    return order


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], values: Values | None) -> None:
    """Write a file unless it exists; without values its data is a hole."""
    if path.exists():
        print(f"{path.name}: exists")
        return
    partial = path.with_name(path.name + ".partial")
    size = sum(tensor.nbytes for tensor in tensors.values())
    with partial.open("wb") as file:
        order = write_header(file, tensors, metadata)
        stop = file.tell() + size
        for key in order if values else ():
            for piece in values(key, tensors[key]):
                file.write(piece.data)
        if not values:
            file.truncate(stop)
    if partial.stat().st_size != stop:
        raise RuntimeError(f"{path.name}: {partial.stat().st_size} bytes written, {stop} expected")
    os.replace(partial, path)
    print(f"{path.name}: {len(tensors)} tensors, {stop / 1e6:,.1f} MB{'' if values else ', a hole'}")


def write_lora(folder: Path, name: str, *, small: bool) -> None:
    """Write one of `LORAS`."""
    lora = LORAS[name]
    layout = read_layout(lora.arch, small=small)
    tensors = lora_tensors(lora, layout)
    write(folder / f"{name}.safetensors", tensors, lora_metadata(lora), lora_values(lora, layout))


def write_set(folder: Path, name: str, *, small: bool = False) -> None:
    """Write one of `SETS` with its bases."""
    for lora in SETS[name]:
        write_lora(folder, lora, small=small)
    for base, (arch, dtype) in BASES.get(name, {}).items():
        tensors = read_layout(arch, small=small).tensors
        tensors = tensors if dtype == "F16" else in_eight_bits(tensors, dtype)
        write(folder / f"{base}.safetensors", tensors, {"format": "pt"}, base_values(1, tensors))
    for base, (arch, size) in SPARSE_BASES.items() if name == "sparse" else ():
        tensors = read_layout(arch).tensors
        write(folder / f"{base}.safetensors", grow(tensors, size) if size else tensors, {}, None)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and write the sets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--only", choices=tuple(SETS), action="append", help="one set; may be given again")
    parser.add_argument("--small", action="store_true", help="a few blocks of each, to try a benchmark out")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only or DEFAULT_SETS:
        write_set(options.folder, name, small=options.small)


if __name__ == "__main__":
    main()
