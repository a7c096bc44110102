"""What is this folder? Say where the weights are that were looked for in a folder without any."""

from __future__ import annotations

from pathlib import Path

from lorabake.tensors.links import listed
from lorabake.tensors.reader import is_there
from lorabake.visible import some

_LOOKED_FOR = (
    "Name the folder or the file that holds the model. A folder has model.safetensors, "
    "diffusion_pytorch_model.safetensors, a *.safetensors.index.json, a single *.safetensors, or "
    "a .bin of these names."
)

NO_ADAPTER = "The folder has an adapter's configuration alone: put its weights there, or train and save it anew."

LOOSE = (".ckpt", ".pt", ".pth", ".gguf", ".npz", ".bin")
"""Files of weights that are read by themselves, but not looked for in a folder."""

FOREIGN = (".msgpack", ".h5", ".onnx", ".tflite", ".ot", ".pb", ".mlmodel")
"""Files of weights in formats that are not read."""

SHOWS_A_MODEL = ("model_index.json", "config.json", "adapter_config.json")


def where_weights_are(path: Path) -> str:
    """Advise on a folder in which no weights were found."""
    files = [entry for entry in listed(path) if not entry.name.startswith(".")]
    if is_there(path / "adapter_config.json"):
        return NO_ADAPTER
    revisions = [entry for entry in _inside(path / "snapshots") if entry.is_dir()]
    if revisions:
        return f"This is a folder of Hugging Face's cache. Give the model in it: {revisions[-1]}"
    models = [entry for entry in files if _holds_a_model(entry)]
    if models:
        return one_of(models)
    if loose := [entry for entry in files if entry.suffix.lower() in LOOSE]:
        return f"Give the file of weights itself: {loose[0]}"
    if foreign := [entry.name for entry in files if entry.suffix.lower() in FOREIGN]:
        return f"It has weights in a format that lorabake cannot read ({some(foreign)}): give them as SafeTensors."
    return _LOOKED_FOR


def one_of(folders: list[Path]) -> str:
    """Advise to choose one of the models in a folder's sub-folders."""
    return f"Models are in its sub-folders: {some([entry.name for entry in folders])}. Give one: {folders[0]}"


def _holds_a_model(folder: Path) -> bool:
    inside = _inside(folder)
    return any(entry.name in SHOWS_A_MODEL or entry.suffix in (".safetensors", *LOOSE) for entry in inside)


def _inside(folder: Path) -> list[Path]:
    """List what is in a folder; nothing for what is none, or cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
