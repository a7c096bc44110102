"""Merge LoRAs the way diffusers documents it: load, attach, fuse, save. The yardstick for lorabake's speed.

Everything is local: the pipeline's structure comes from `benchmarks/configs/`, its weights from the base, and
there are no tokenizers, which neither loading nor fusing needs. The result is a diffusers folder in float16.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import warnings
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    DIFFUSERS_VERBOSITY="error",
    TRANSFORMERS_VERBOSITY="error",
)

CONFIGS = Path(__file__).resolve().parent / "configs"
# A tensor of the second text encoder, which SDXL has and SD1.5 has not.
SDXL_MARK = b'"conditioner.embedders.1.model.'


def architecture(base: Path) -> str:
    """Tell SDXL from SD1.5 by the base's header."""
    with base.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return "sdxl" if SDXL_MARK in file.read(length) else "sd15"


def merge(base: Path, loras: list[tuple[Path, float]], output: Path, device: str) -> None:
    """Write `base` with `loras` fused into it, on a device, as a diffusers folder."""
    warnings.simplefilter("ignore")
    import torch
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()

    arch = architecture(base)
    pipeline_class = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[arch]
    without = {
        "sd15": {"tokenizer": None, "safety_checker": None},
        "sdxl": {"tokenizer": None, "tokenizer_2": None, "add_watermarker": False},
    }[arch]
    pipeline = pipeline_class.from_single_file(
        str(base), config=str(CONFIGS / arch), torch_dtype=torch.float16, local_files_only=True, **without
    )
    pipeline.to(device)
    names = [f"lora_{number}" for number in range(len(loras))]
    for name, (path, _) in zip(names, loras, strict=True):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    pipeline.set_adapters(names, [strength for _, strength in loras])
    components = [name for name in pipeline._lora_loadable_modules if name in pipeline.components]
    pipeline.fuse_lora(components=components, adapter_names=names)
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(str(output), safe_serialization=True)


def parse_lora(text: str) -> tuple[Path, float]:
    """Read FILE=STRENGTH; the strength is 1 where none is given."""
    path, equals, strength = text.rpartition("=")
    return (Path(path), float(strength)) if equals else (Path(text), 1.0)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and merge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("loras", type=parse_lora, nargs="+", metavar="LORA=STRENGTH")
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.output.exists():
        sys.exit(f"{options.output} exists")
    merge(options.base, options.loras, options.output, options.device)


if __name__ == "__main__":
    main()
