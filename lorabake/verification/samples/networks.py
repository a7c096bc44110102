"""Build the networks of a checkpoint for sampling, wholly offline, one at a time, in float32.

diffusers' own single-file conversion names the tensors, so that sampling does not rest on lorabake's tables. The
configurations ship with lorabake (`configs/`); what a header tells of sizes is put into them first, so that small,
pruned and widened models work.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorabake.errors import FileError, SurroundingsError
from lorabake.keymap.expansion import KeyMap
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.storage.recognition import NOTES, find_packing
from lorabake.storage.statements import read_beside
from lorabake.tensors.checkpoint import Checkpoint, optional_object
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.packing import PackedInfo
from lorabake.tensors.reader import is_there

if TYPE_CHECKING:
    import torch

VOCABULARY = 49408
EXTRA = "install the extra: pip install 'lorabake[verify]'"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Configs:
    """Hold a family's configurations by component, sizes from the header put in; `folder` holds them as files."""

    folder: Path
    parts: Mapping[str, Config]


def has_configs(plan: Plan) -> bool:
    """Tell whether the family of a plan is one of Stable Diffusion's UNets, which have a loop of their own."""
    folder = shipped().joinpath(plan.sources.key_map.architecture.name, "unet")
    return bool(folder.joinpath("config.json").is_file() and "unet" in plan.sources.key_map.placed)


@contextmanager
def configs(plan: Plan) -> Iterator[Configs]:
    """Write the configurations of a plan's base to a folder that lives as long as this.

    They come from `verify.config` of the recipe, from the base where it is a diffusers folder, else from the shipped
    ones of its family.
    """
    said = plan.sources.recipe.verify
    with tempfile.TemporaryDirectory(prefix="lorabake-") as name:
        folder = Path(name)
        if said is not None and said.config is not None:
            source = plan.sources.recipe.locate(said.config)
            if not is_there(source / "unet" / "config.json"):
                raise FileError(f"{source}: verify.config must be a folder with unet/config.json, vae/config.json …")
            parts = _read(source)
        elif plan.sources.base.is_folder:
            parts = _read(plan.sources.base.path)
        else:
            with resources.as_file(shipped() / plan.sources.key_map.architecture.name) as source:
                parts = _read(source)
            for component, config in parts.items():
                if component in plan.sources.key_map.modules:
                    config.update(sizes_of(component, plan.sources.key_map))
        for component, config in parts.items():
            name = "scheduler_config.json" if component == "scheduler" else "config.json"
            (folder / component).mkdir()
            (folder / component / name).write_text(json.dumps(config))
        yield Configs(folder, parts)


def shipped() -> Any:
    """Return the folder of configurations and vocabulary that comes with lorabake."""
    return resources.files("lorabake").joinpath("configs")


def _read(source: Path) -> dict[str, Config]:
    found: dict[str, Config] = {}
    for component in ("unet", "vae", *TEXT_ENCODERS, "scheduler"):
        for name in ("config.json", "scheduler_config.json"):
            if (said := optional_object(source / component / name)) is not None:
                found[component] = dict(said)
    return found


def sizes_of(component: str, key_map: KeyMap) -> Config:
    """Read the sizes that a header tells of one network."""
    modules = key_map.modules[component]

    def shape(name: str) -> tuple[int, ...]:
        return modules[name].views["weight"].shape

    def count(template: str) -> int:
        number = 0
        while template.format(number) in modules:
            number += 1
        return number

    if component == "unet":
        levels = count("down_blocks.{}.resnets.0.conv1")
        sizes: Config = {
            "in_channels": shape("conv_in")[1],
            "out_channels": shape("conv_out")[0],
            "block_out_channels": [shape(f"down_blocks.{level}.resnets.0.conv1")[0] for level in range(levels)],
            "layers_per_block": count("down_blocks.0.resnets.{}.conv1"),
        }
        inner = "transformer_blocks.0.attn2.to_k"
        sizes["cross_attention_dim"] = next(
            shape(f"{block}.attentions.0.{inner}")[1]
            for block in (*(f"down_blocks.{level}" for level in range(levels)), "mid_block")
            if f"{block}.attentions.0.{inner}" in modules
        )
        if "add_embedding.linear_1" in modules:
            sizes["projection_class_embeddings_input_dim"] = shape("add_embedding.linear_1")[1]
        return sizes
    if component == "vae":
        levels = count("encoder.down_blocks.{}.resnets.0.conv1")
        return {
            "block_out_channels": [shape(f"encoder.down_blocks.{i}.resnets.0.conv1")[0] for i in range(levels)],
            "layers_per_block": count("encoder.down_blocks.0.resnets.{}.conv1"),
            "latent_channels": shape("post_quant_conv")[1],
        }
    width = shape("text_model.encoder.layers.0.mlp.fc1")[1]
    layers = count("text_model.encoder.layers.{}.mlp.fc1")
    if component == "text_encoder" and key_map.placed[component][0].name == "openclip":
        layers = min(layers, 23)  # SD 2.x reads the state before the last of 24 layers; diffusers leaves that one out
    return {
        "hidden_size": width,
        "intermediate_size": shape("text_model.encoder.layers.0.mlp.fc1")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "projection_dim": shape("text_projection")[0] if "text_projection" in modules else width,
    }


def tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    """Make CLIP's tokenizer from the shipped vocabulary; SD 2.x and OpenCLIP pad with "!", CLIP-L with its end token.

    Raise SurroundingsError where transformers makes another vocabulary of it: a tokenizer without its files has two
    tokens, and every prompt becomes filler.
    """
    from transformers import CLIPTokenizer

    packed = shipped().joinpath("clip", "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1 : VOCABULARY - 512 - 2 + 1]
    # Bytes that print stand for themselves, the others for the characters from U+0100 on.
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in (*printed, *range(256, 512 - len(printed)))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory(prefix="lorabake-") as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
        made = CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad_token, model_max_length=77
        )
    if len(made) != VOCABULARY:
        raise SurroundingsError(f"transformers made a tokenizer of {len(made)} tokens, not {VOCABULARY}; {EXTRA}")
    return made


def build(
    component: str, key_map: KeyMap, infos: Mapping[str, TensorInfo], configs: Configs, files: Files
) -> torch.nn.Module:
    """Build one network in float32 from the tensors of `infos` (by the base's keys) that belong to it."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    layout, prefix = key_map.placed[component]
    own = [key for key, owner in key_map.owner.items() if owner == component and key in infos]
    converted = layout.name in ("ldm", "openclip") or (component in TEXT_ENCODERS and not prefix.endswith("/"))
    state = {key if converted else key.removeprefix(prefix): as_torch(infos[key], files) for key in own}
    options = {"config": str(configs.folder), "subfolder": component, "local_files_only": True}
    network: Any
    maker: Any
    if component in TEXT_ENCODERS:
        maker = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
        if converted:
            from diffusers.loaders import single_file_utils

            convert: Any = single_file_utils.create_diffusers_clip_model_from_ldm  # it has no types
            network = convert(maker, checkpoint=state, torch_dtype=torch.float32, **options)
        else:
            network = maker(CLIPTextConfig.from_pretrained(configs.folder / component))
            if not hasattr(network, "text_model"):
                state = {key.removeprefix("text_model."): value for key, value in state.items()}
            state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
            network.load_state_dict(state, strict=True)
    else:
        maker = UNet2DConditionModel if component == "unet" else AutoencoderKL
        if converted:
            network = maker.from_single_file(state, torch_dtype=torch.float32, **options)
        else:
            network = maker.from_config(configs.parts[component])
            network.load_state_dict(state, strict=True)
    eval_network: torch.nn.Module = network.eval().requires_grad_(False)
    return eval_network


def seen(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return a checkpoint's tensors as networks see them: packed and scaled weights whole, what unpacks them gone."""
    packing = find_packing(checkpoint, read_beside(checkpoint))
    found = packing.logical(checkpoint.tensors)
    if not packing.packed and not packing.scaled:
        return found
    gone = {part.key for info in packing.scaled.values() for part in info.parts.values()} - packing.scaled.keys()
    return {
        key: packing.scaled.get(key, info)
        for key, info in found.items()
        if key not in gone and not key.endswith((*NOTES, "scaled_fp8"))
    }


def as_torch(info: TensorInfo, files: Files) -> torch.Tensor:
    """Read a tensor; floats become float32, and packed weights what they hold."""
    import torch

    if isinstance(info, PackedInfo):
        return torch.from_numpy(files.whole(info).astype(np.float32))
    raw = torch.frombuffer(bytearray(files.raw(info.file, info.start, info.nbytes) or b"\0"), dtype=torch.uint8)
    kind = getattr(torch, str(DTYPES[info.dtype].torch))
    tensor = raw[: info.nbytes].view(kind).reshape(info.shape)
    return tensor.float() if tensor.is_floating_point() else tensor


def submodule(network: torch.nn.Module, name: str) -> tuple[str, torch.nn.Module] | None:
    """Find a module by one of its names in lorabake's tables; transformers' CLIP may lack the leading text_model."""
    for path in (name, name.removeprefix("text_model."), f"text_model.{name}"):
        try:
            return path, network.get_submodule(path)
        except AttributeError:
            continue
    return None
