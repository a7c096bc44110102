"""What is this file? Every sort is told by keys and shapes, no file is of two, and each place says what it got."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from lorabake.baking import plan
from lorabake.errors import FileError, LorabakeError, RecipeError
from lorabake.inspection import inspect
from lorabake.recipe import load_recipe
from lorabake.tensors.checkpoint import open_checkpoint, open_lora
from lorabake.tensors.magic import FORMATS, TEXT, format_of
from lorabake.tensors.sorts import SORTS, sort_of
from tests import builders as b
from tests.tables import load_table

Shapes = Mapping[str, tuple[int, ...]]

FEATURES = (4, 4, 3, 3)

EXAMPLES: dict[str, tuple[str, Shapes]] = {
    "vae of ldm": ("vae", {"encoder.conv_in.weight": FEATURES, "decoder.mid.block_1.conv1.weight": FEATURES}),
    "vae of diffusers": ("vae", {"encoder.down_blocks.0.resnets.0.conv1.weight": FEATURES, "quant_conv.bias": (8,)}),
    "vae of videos": ("vae", {"conv1.weight": (4, 4, 1, 1, 1), "encoder.conv1.weight": (4, 3, 3, 3, 3)}),
    "vae in a checkpoint's names": ("vae", {"first_stage_model.decoder.conv_in.weight": FEATURES}),
    "word of one encoder": ("textual_inversion", {"emb_params": (2, 8)}),
    "word of two encoders": ("textual_inversion", {"clip_l": (2, 8), "clip_g": (2, 12)}),
    "word of diffusers": ("textual_inversion", {"<cat-toy>": (8,)}),
    "word that was pickled": ("textual_inversion", {"string_to_param.*": (2, 8)}),
    "embeddings": ("embeddings", {"model.embed_tokens.weight": (9, 8), "lm_head.weight": (9, 8)}),
    "hypernetwork": ("hypernetwork", {"320.0.linear.0.weight": (8, 4), "320.1.linear.2.bias": (4,)}),
    "control-lora": ("control_lora", {"lora_controlnet": (0,), "input_hint_block.0.weight": FEATURES}),
    "controlnet of diffusers": (
        "controlnet",
        {"controlnet_cond_embedding.conv_in.weight": FEATURES, "conv_in.weight": FEATURES},
    ),
    "controlnet of its maker": (
        "controlnet",
        {"control_model.input_hint_block.0.weight": FEATURES, "control_model.out.0.weight": (4,)},
    ),
    "controlnet of a transformer": (
        "controlnet",
        {"controlnet_blocks.0.weight": (8, 8), "x_embedder.weight": (8, 4)},
    ),
    "controlnet, light": ("controlnet", {"lllite_unet_input_blocks_4_1_attn1_to_q.depth1.0.weight": FEATURES}),
    "t2i-adapter": ("t2i_adapter", {"body.0.block1.weight": FEATURES, "conv_in.weight": FEATURES}),
    "t2i-adapter of diffusers": (
        "t2i_adapter",
        {"adapter.body.0.resnets.0.block1.weight": FEATURES, "adapter.conv_in.bias": (4,)},
    ),
    "ip-adapter": ("ip_adapter", {"image_proj.proj.weight": (8, 4), "ip_adapter.1.to_k_ip.weight": (4, 4)}),
    "ip-adapter with LoRAs": (
        "ip_adapter",
        {
            "image_proj.proj.0.weight": (8, 4),
            "ip_adapter.0.to_k_lora.down.weight": (2, 4),
            "ip_adapter.0.to_k_lora.up.weight": (4, 2),
            "ip_adapter.1.to_k_ip.weight": (4, 4),
        },
    ),
    "ip-adapter of a transformer": (
        "ip_adapter",
        {
            "ip_adapter_proj_model.norm.weight": (4,),
            "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight": (8, 4),
        },
    ),
    "upscaler": ("upscaler", {"conv_first.weight": FEATURES, "body.0.rdb1.conv1.weight": FEATURES}),
    "upscaler of old": ("upscaler", {"model.0.weight": FEATURES, "model.1.sub.0.RDB1.conv1.0.weight": FEATURES}),
    "upscaler, compact": ("upscaler", {"body.0.weight": FEATURES, "body.0.bias": (4,), "body.1.weight": (4,)}),
    "image encoder": (
        "image_encoder",
        {"vision_model.embeddings.patch_embedding.weight": (8, 3, 4, 4), "visual_projection.weight": (4, 8)},
    ),
    "image encoder of open_clip": ("image_encoder", {"visual.conv1.weight": (8, 3, 4, 4), "visual.proj": (8, 4)}),
    "optimizer": ("optimizer_state", {"state.0.exp_avg": (8, 4), "state.0.exp_avg_sq": (8, 4), "state.0.step": ()}),
    "nothing": ("empty", {}),
}

NEITHER: dict[str, Shapes] = {
    "LoRA of kohya": {"lora_unet_a.lora_down.weight": (2, 8), "lora_unet_a.lora_up.weight": (8, 2)},
    "LoRA on a ControlNet": {
        "controlnet_blocks.0.lora_A.weight": (2, 8),
        "controlnet_blocks.0.lora_B.weight": (8, 2),
    },
    "LoRA on a VAE": {
        "encoder.conv_in.lora_down.weight": (2, 8, 1, 1),
        "encoder.conv_in.lora_up.weight": (8, 2, 1, 1),
    },
    "words and a LoRA": {"bundle_emb.ohwx.clip_l": (2, 8), "lora_unet_a.lora_down.weight": (2, 8)},
    "a language model": {"model.embed_tokens.weight": (9, 8), "model.layers.0.mlp.up_proj.weight": (8, 8)},
    "an encoder and decoder of texts": {"encoder.block.0.q.weight": (8, 8), "decoder.block.0.q.weight": (8, 8)},
    "both sides of CLIP": {
        "vision_model.embeddings.patch_embedding.weight": (8, 3, 4, 4),
        "text_model.embeddings.token_embedding.weight": (9, 8),
    },
    "a checkpoint with its VAE": {
        "model.diffusion_model.out.0.weight": (8,),
        "first_stage_model.encoder.conv_in.weight": FEATURES,
    },
}

REAL = {
    "arenasys_vae_v1_sd": "vae",
    "diffusers_sd15_vae": "vae",
    "invoke_flux2_vae_bfl_keys": "vae",
    "stripped_juggernaut_xl_v9_vae_diffusion_pytorch_model_fp16": "vae",
    "stripped_hard_edge_detection_canny_diffusion_pytorch_model_fp16": "controlnet",
}
"""Tables of real files that are of a sort, ControlNets apart; all others are LoRAs and checkpoints."""

TABLES: list[str] = sorted(
    json.loads(gzip.decompress((Path(__file__).parent / "headers/tables.json.gz").read_bytes()))
)


def kept(path: Path, shapes: Shapes) -> Path:
    """Save tensors of these shapes."""
    return b.save(path, {key: torch.ones(shape) for key, shape in shapes.items()})


def sorts_of(shapes: Shapes) -> list[str]:
    """List all sorts whose marks fit."""
    return [sort.name for sort in SORTS if any(marks.fit(dict(shapes)) for marks in sort.marks)]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_of_its_sort_alone(example: str) -> None:
    name, shapes = EXAMPLES[example]
    assert sorts_of(shapes) == ([name] if shapes else [])


@pytest.mark.parametrize("example", NEITHER)
def test_loras_and_checkpoints_are_of_no_other_sort(example: str) -> None:
    assert sorts_of(NEITHER[example]) == []


@pytest.mark.parametrize("table", TABLES)
def test_real_files_are_of_their_sort_alone(table: str) -> None:
    shapes = {key: info.shape for key, info in load_table(table).items()}
    name = REAL.get(table, "controlnet" if table.startswith("diffusers_controlnet_") else None)
    assert sorts_of(shapes) == ([name] if name else [])


def test_every_sort_has_an_example() -> None:
    assert {sort.name for sort in SORTS} | {"empty"} == {name for name, _ in EXAMPLES.values()}


@pytest.mark.parametrize("example", EXAMPLES)
def test_inspect_says_the_sort(tmp_path: Path, example: str) -> None:
    name, shapes = EXAMPLES[example]
    told = inspect(kept(tmp_path / "file.safetensors", shapes))
    assert told["what"] == name
    sort = sort_of(load_shapes(shapes))
    assert sort is not None
    problems = [problem["message"] for problem in told["problems"]]  # type: ignore[attr-defined]
    assert problems == ([sort.advice] if sort.is_no_base else [])


def load_shapes(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Make tensors without values."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


# -- each place says what it got ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a base, a LoRA and a VAE, and a recipe of them."""
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.save(tmp_path / "vae.safetensors", b.vae_file("ldm", seed=1))
    b.sd1_lora(tmp_path / "lora.safetensors")
    return tmp_path


def refusal(folder: Path, **fields: object) -> list[str]:
    """Return the lines of the error of a recipe with these fields."""
    with pytest.raises(LorabakeError) as caught:
        plan(load_recipe(b.recipe(folder, **fields)))
    return list(caught.value.args)


@pytest.mark.parametrize("example", [name for name in EXAMPLES if name != "nothing"])
def test_as_a_lora(folder: Path, example: str) -> None:
    _, shapes = EXAMPLES[example]
    kept(folder / "given.safetensors", shapes)
    sort = sort_of(load_shapes(shapes))
    assert sort is not None
    assert refusal(folder, loras=["given.safetensors"]) == [
        f"LoRA 'given.safetensors': is {sort.title}, not a LoRA",
        sort.advice,
    ]


@pytest.mark.parametrize("example", [name for name in EXAMPLES if name != "nothing"])
def test_as_a_base(folder: Path, example: str) -> None:
    _, shapes = EXAMPLES[example]
    kept(folder / "given.safetensors", shapes)
    sort = sort_of(load_shapes(shapes))
    assert sort is not None
    told = refusal(folder, base="given.safetensors")
    if sort.is_no_base:
        assert told == [
            f"{folder}/given.safetensors: is {sort.title}, and the base must be a checkpoint",
            sort.advice,
        ]
    else:
        assert told == [
            f"base: is {sort.title}, not a checkpoint: LoRA 'lora.safetensors' has no place on it",
            sort.advice,
            "Give as base the checkpoint that the LoRA was trained on.",
        ]


@pytest.mark.parametrize("example", [name for name in EXAMPLES if not name.startswith(("vae", "nothing"))])
def test_as_a_vae(folder: Path, example: str) -> None:
    _, shapes = EXAMPLES[example]
    kept(folder / "given.safetensors", shapes)
    sort = sort_of(load_shapes(shapes))
    assert sort is not None
    told = refusal(folder, vae="given.safetensors")
    assert told == [
        f"{folder}/given.safetensors: is {sort.title}, not a VAE: it has no encoder.down… tensors",
        sort.advice,
    ]


def test_a_lora_as_a_base_and_a_base_as_a_lora(folder: Path) -> None:
    assert refusal(folder, base="lora.safetensors") == [
        f"{folder}/lora.safetensors: is a LoRA, and the base must be a checkpoint",
        "Name it under loras, and as base the checkpoint that it was trained on.",
    ]
    assert refusal(folder, loras=["base.safetensors"]) == [
        "LoRA 'base.safetensors': is a checkpoint (Stable Diffusion 1.x), not a LoRA",
        "Name it as base. A LoRA is a smaller file that was trained on such a checkpoint.",
    ]
    assert refusal(folder, vae="lora.safetensors")[0].endswith("lora.safetensors: is a LoRA, not a VAE: it has no "
                                                               "encoder.down… tensors")  # fmt: skip


@pytest.mark.parametrize("inside", ["unet", "vae", "text_encoder"])
def test_a_part_of_a_folder_as_a_lora(folder: Path, inside: str) -> None:
    b.sd1_folder(folder / "model")
    first, advice = refusal(folder, loras=[f"model/{inside}"])
    assert first.startswith(f"LoRA 'model/{inside}': is a ")
    assert first.endswith(", not a LoRA")
    assert advice.startswith("Name it")


# -- folders -----------------------------------------------------------------------------------------------------

LOOKED_FOR = "Name the folder or the file that holds the model. A folder has model.safetensors, "

FOLDERS: dict[str, tuple[list[str], str]] = {
    "the parent of pipelines": (
        ["a/model_index.json", "b/model_index.json"],
        "Models are in its sub-folders: 'a', 'b'. Give one: {folder}/a",
    ),
    "a cache's folder": (
        ["snapshots/0123/model.safetensors", "refs/main"],
        "This is a folder of Hugging Face's cache. Give the model in it: {folder}/snapshots/0123",
    ),
    "a checkpoint of another format": (["v1.ckpt", "v1.yaml"], "Give the file of weights itself: {folder}/v1.ckpt"),
    "another library's weights": (
        ["flax_model.msgpack", "config.json"],
        "It has weights in a format that lorabake cannot read ('flax_model.msgpack'): give them as SafeTensors.",
    ),
    "an adapter's configuration": (
        ["adapter_config.json"],
        "The folder has an adapter's configuration alone: put its weights there, or train and save it anew.",
    ),
    "pictures": (["a.png", "a.txt"], LOOKED_FOR),
}


@pytest.mark.parametrize("which", FOLDERS)
def test_a_folder_without_weights_says_where_they_are(tmp_path: Path, which: str) -> None:
    files, told = FOLDERS[which]
    folder = tmp_path / "given"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    with pytest.raises(FileError) as caught:
        open_checkpoint(folder)
    first, advice = caught.value.args
    assert first == f"{folder}: no weights in this folder"
    assert advice.startswith(told.format(folder=folder))


@pytest.mark.parametrize("place", ["base", "loras"])
def test_a_folder_of_models_is_none(folder: Path, place: str) -> None:
    (folder / "all/a").mkdir(parents=True)
    (folder / "all/b").mkdir()
    for name in ("a", "b"):
        b.sd1_lora(folder / f"all/{name}/style.safetensors")
    told = [
        f"{folder}/all: is a folder of models or LoRAs, not one of them",
        f"Models are in its sub-folders: 'a', 'b'. Give one: {folder}/all/a",
    ]
    assert refusal(folder, **{place: ["all"] if place == "loras" else "all"}) == told
    with pytest.raises(FileError) as caught:
        inspect(folder / "all")
    assert list(caught.value.args) == told


def test_parts_of_a_model_without_its_index_are_one(folder: Path) -> None:
    b.sd1_folder(folder / "model")
    (folder / "model/model_index.json").unlink()
    assert inspect(folder / "model")["what"] == "checkpoint"


# -- files that are no tensors by name ---------------------------------------------------------------------------

PICKLED: dict[str, tuple[str, object]] = {
    "word": (
        "a textual inversion",
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 8)}, "name": "ohwx", "step": 500},
    ),
    "optimizer": (
        "the state of an optimizer",
        {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 1e-4}]},
    ),
    "hypernetwork": (
        "a hypernetwork",
        {
            320: ({"linear.0.weight": torch.ones(2, 2)}, {"linear.0.weight": torch.ones(2, 2)}),
            "layer_structure": [1, 2, 1],
            "activation_func": "relu",
            "step": 500,
        },
    ),
}


@pytest.mark.parametrize("which", PICKLED)
def test_pickles_of_other_sorts(tmp_path: Path, which: str) -> None:
    title, value = PICKLED[which]
    torch.save(value, tmp_path / "given.pt")
    with pytest.raises(FileError) as caught:
        open_lora(tmp_path / "given.pt")
    first, advice = caught.value.args
    assert first == f"{tmp_path}/given.pt: is {title}, and no checkpoint or LoRA"
    assert advice == next(sort.advice for sort in SORTS if sort.title == title)


@pytest.mark.parametrize(
    ("name", "content", "title"),
    [
        ("m.gguf", b"<html>login</html>", "an HTML page"),
        ("m.npz", b"<html>login</html>", "an HTML page"),
        ("m.ckpt", b"<html>login</html>", "an HTML page"),
        ("m.onnx", bytes(range(8, 200)), "an ONNX model"),
    ],
)
def test_a_name_may_be_wrong_and_may_be_all_there_is(tmp_path: Path, name: str, content: bytes, title: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError) as caught:
        open_checkpoint(tmp_path / name)
    assert caught.value.args[0] == f"{tmp_path}/{name}: is {title}, not SafeTensors"


BEGINNINGS = {
    "a SafeTensors file": (640).to_bytes(8, "little") + b'{"a":',
    "a recipe": b"# my style\nversion: 1\nbase: a.safetensors\n",
    "a zip archive or PyTorch pickle": b"PK\x03\x04" + bytes(20),
    "a pickle": b"\x80\x02}q\x00" + bytes(20),
    "a GGUF file": b"GGUF\x03\0\0\0" + bytes(20),
    "a NumPy array": b"\x93NUMPY\x01\0v\0{'descr'",
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "a gzip archive": b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\x04" + bytes(20),
    "a RAR archive": b"Rar!\x1a\x07\x01\0" + bytes(20),
    "an xz archive": b"\xfd7zXZ\0\0\x04" + bytes(20),
    "a Zstandard archive": b"\x28\xb5\x2f\xfd\x24\0" + bytes(20),
    "a PNG picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a JPEG picture": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "a WebP picture": b"RIFF\x24\0\0\0WEBPVP8 ",
    "a GIF picture": b"GIF89a" + bytes(20),
    "a video": b"\0\0\0\x20ftypisom" + bytes(20),
    "a PDF document": b"%PDF-1.7\n",
    "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n",
    "an HTML page": b"\n <!DOCTYPE html><html>",
    "an XML text": b"<?xml version='1.0'?><Error/>",
    "a JSON text": b'{"version": 1, "base": "a"}',
    "a file that begins with zeros": bytes(64),
    "a text": b"strength: 0.8 is best",
}


@pytest.mark.parametrize("title", BEGINNINGS)
def test_a_beginning_is_of_one_format(title: str) -> None:
    fitting = [form.title for form in FORMATS if form.begins.match(BEGINNINGS[title])]
    assert fitting == ([title] if title != TEXT.title else [])
    form = format_of(BEGINNINGS[title])
    assert form is not None
    assert form.title == title


def test_every_format_has_an_example() -> None:
    assert {form.title for form in (*FORMATS, TEXT)} == set(BEGINNINGS)


@pytest.mark.parametrize("title", BEGINNINGS)
def test_what_is_no_recipe_is_told(tmp_path: Path, title: str) -> None:
    path = tmp_path / "given.yaml"
    path.write_bytes(BEGINNINGS[title])
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    if title in ("a recipe", "a text", "a JSON text"):  # these may be recipes, and are read as such
        assert ": missing key " in caught.value.args[0] or "must be" in caught.value.args[0]
    else:
        assert caught.value.args[0] == f"{path}: is {title}, not a recipe"


def test_one_file_of_a_sharded_model_is_no_base(tmp_path: Path) -> None:
    """Half of a model would take half of a LoRA: an ignore pattern would hide that the rest is missing."""
    b.llama(tmp_path / "model", shards=2)
    first = tmp_path / "model" / "model-00001-of-00002.safetensors"
    recipe = b.recipe(tmp_path, base="model/model-00001-of-00002.safetensors")
    with pytest.raises(FileError, match="is file 1 of 2 of a model") as refused:
        plan(load_recipe(recipe))
    assert str(refused.value).endswith(f"Name the folder, or the index of its files: {first.parent}")
    variant = first.rename(tmp_path / "model-00001-of-00002.fp16.safetensors")
    with pytest.raises(FileError, match="is file 1 of 2 of a model"):
        plan(load_recipe(b.recipe(tmp_path, base=variant.name)))
    alone = tmp_path / "model-00001-of-00001.safetensors"
    variant.rename(alone)
    recipe = b.recipe(tmp_path, base=alone.name)
    with pytest.raises(LorabakeError) as refused:
        plan(load_recipe(recipe))
    assert "of a model, and" not in str(refused.value)
