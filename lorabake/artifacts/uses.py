"""Say how to use an output in other programs: in which, as far as it holds all they need, and by what code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from lorabake.artifacts.made import Made
from lorabake.visible import visible

TORCH: Final = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
"""Dtypes that a pipeline may compute in, as torch names them."""

OF_WEB_UIS: Final = ("ldm", "sgm")
"""Layouts of a UNet that AUTOMATIC1111's web UI and its like load."""

LATENT: Final = ("unet", "transformer")
"""Names of the network that draws."""


@dataclass(frozen=True, slots=True)
class Use:
    """Say how to use an output in one program: a sentence, in which {file} stands for a name, and code."""

    heading: str
    text: str
    names: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    language: str = "python"


def uses_of(made: Made) -> Iterator[Use]:
    """Yield the programs that load an output, as far as its form tells."""
    path = made.checkpoint.path
    if made.checkpoint.is_folder:
        if (path / "model_index.json").is_file():
            yield Use("diffusers", "Load the folder:", {}, _diffusers_folder(made))
        elif made.pipeline and (path / "config.json").is_file():
            yield Use("transformers", "Load the folder:", {}, _transformers(made))
        else:
            yield Use("In Python", "Load the folder's files:", {}, _safetensors("model.safetensors"))
        return
    parts = made.components.keys()
    is_whole = any(name.startswith("text_encoder") for name in parts) and "vae" in parts
    drawing = next((name for name in LATENT if name in parts), "")
    if drawing and is_whole:
        if made.pipeline:
            yield Use("diffusers", "Load the file:", {}, _single_file(made))
        yield Use(
            "ComfyUI",
            "Put {file} into `ComfyUI/models/checkpoints`, press `R`, and choose it in the node Load Checkpoint. "
            "Remove the nodes that load its LoRAs.",
            {"file": path.name},
        )
        if made.components.get("unet") in OF_WEB_UIS:
            yield Use(
                "AUTOMATIC1111, Forge",
                "Put {file} into `models/Stable-diffusion`, refresh the list of checkpoints, and choose it. Remove "
                "`<lora:…>` of its LoRAs from the prompt.",
                {"file": path.name},
            )
    elif drawing:
        yield Use(
            "ComfyUI",
            "Put {file} into `ComfyUI/models/diffusion_models`, press `R`, and choose it in the node Load Diffusion "
            "Model. It has no text encoder and no VAE: keep those of its family.",
            {"file": path.name},
        )
    else:
        yield Use("In Python", "Load the tensors:", {}, _safetensors(path.name))


def _prompt(made: Made) -> str:
    return visible(", ".join(dict.fromkeys(phrase for _, phrase in made.phrases)) or "a photo of a cat")


def _diffusers_folder(made: Made) -> str:
    return _diffusers(made, "DiffusionPipeline", "from_pretrained")


def _single_file(made: Made) -> str:
    return _diffusers(made, made.pipeline, "from_single_file")


def _diffusers(made: Made, name: str, loader: str) -> str:
    """Write how a pipeline is loaded in the output's own dtype: left out, its parts would get several."""
    dtype = next((TORCH[name] for name in made.dtypes if name in TORCH), "")
    torch = "import torch\n" if dtype else ""
    said = f", torch_dtype=torch.{dtype}" if dtype else ""
    return (
        f"{torch}from diffusers import {name}\n\n"
        f"pipeline = {name}.{loader}({_quoted(made.checkpoint.path.name)}{said})\n"
        f"{_call(made)}"
    )


def _call(made: Made) -> str:
    if made.task == "text-to-image":
        return f'image = pipeline({_quoted(_prompt(made))}).images[0]\nimage.save("picture.png")\n'
    if made.task == "text-to-video":
        return f"frames = pipeline({_quoted(_prompt(made))}).frames[0]\n"
    return "# what the pipeline is called with, its documentation says\n"


def _transformers(made: Made) -> str:
    name = _quoted(made.checkpoint.path.name)
    if made.task != "text-generation":
        return f"from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained({name})\n"
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name})\n"
        f"model = AutoModelForCausalLM.from_pretrained({name})\n"
        f'words = tokenizer("Once upon a time", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**words, max_new_tokens=40)[0]))\n"
    )


def _safetensors(name: str) -> str:
    return f"from safetensors.torch import load_file\n\ntensors = load_file({_quoted(name)})\n"


def _quoted(text: str) -> str:
    """Write a text as Python does, in double quotes where that is possible."""
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in text and "\\'" not in written else written
