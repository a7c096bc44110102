import json
import os
from pathlib import Path

import pytest
import torch

from lorabake.errors import FileError, SurroundingsError
from lorabake.tensors.checkpoint import open_checkpoint, open_lora, optional_object
from lorabake.tensors.reader import is_there
from lorabake.tensors.safetensors import encode_header


def put(root, *files):
    """Write files; weights get one small tensor `w` in float16, or those that `path=key,key` names."""
    for file in files:
        name, _, keys = file.partition("=")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            entries = [(key, "F16", (2,)) for key in (keys or "w").split(",")]
            path.write_bytes(encode_header(entries, {"from": name}) + bytes(4 * len(entries)))
        elif path.suffix == ".bin":
            torch.save({key: torch.ones(2) for key in (keys or "w").split(",")}, path)
        else:
            path.write_text(keys or "{}")
    return root


def put_index(path, **shards):
    weight_map = {key: f"{name}.safetensors" for name, keys in shards.items() for key in keys.split(",")}
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return path


def opened(path, variant=None):
    """Return the names of the files that serve as weights, relative to the folder."""
    checkpoint = open_checkpoint(path, variant)
    return [str(Path(part.folder, header.path.name)) for part in checkpoint.parts for header in part.files]


def fault(path, variant=None, *, how=open_checkpoint):
    with pytest.raises(FileError) as caught:
        how(path, variant) if variant else how(path)
    return str(caught.value)


class TestFile:
    def test_one_file(self, tmp_path):
        path = put(tmp_path, "a.safetensors=x/y,z", "config.json") / "a.safetensors"
        checkpoint = open_checkpoint(path)
        assert (checkpoint.path, checkpoint.is_folder, checkpoint.side_files) == (path, False, ())
        assert [(part.folder, part.index) for part in checkpoint.parts] == [("", None)]
        assert {key: info.name for key, info in checkpoint.tensors.items()} == {"x/y": "x/y", "z": "z"}
        assert checkpoint.metadata == {"from": "a.safetensors"}
        assert checkpoint.size == path.stat().st_size

    @pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "CKPT"])
    def test_pickle(self, tmp_path, suffix):
        path = tmp_path / f"model.{suffix}"
        torch.save({"w": torch.ones(2)}, path)
        assert open_checkpoint(path).path == path
        assert open_checkpoint(path).tensors["w"].dtype == "F32"

    def test_safetensors_under_a_pickle_name(self, tmp_path):
        path = put(tmp_path, "a.safetensors").joinpath("a.safetensors").rename(tmp_path / "a.ckpt")
        assert open_checkpoint(path).tensors.keys() == {"w"}

    def test_pickle_under_a_safetensors_name(self, tmp_path):
        path = put(tmp_path, "a.bin").joinpath("a.bin").rename(tmp_path / "a.safetensors")
        assert "is a zip archive or PyTorch pickle, not SafeTensors" in fault(path)

    def test_missing(self, tmp_path):
        assert fault(tmp_path / "no.ckpt") == f"{tmp_path}/no.ckpt: no such file"

    def test_variant_of_a_file(self, tmp_path):
        put(tmp_path, "a.safetensors")
        message = fault(tmp_path / "a.safetensors", "fp16")
        assert message.splitlines()[0].endswith("variant fp16 can only be chosen in a folder")


class TestShards:
    SHARDS = ("m-00001-of-00002.safetensors=a,b", "m-00002-of-00002.safetensors=c")

    @pytest.fixture
    def index(self, tmp_path):
        put(tmp_path, *self.SHARDS, "config.json")
        return put_index(
            tmp_path / "m.safetensors.index.json", **{"m-00001-of-00002": "a,b", "m-00002-of-00002": "c"}
        )

    def test_folder_and_index_are_the_same(self, index):
        checkpoint = open_checkpoint(index)
        assert checkpoint == open_checkpoint(index.parent)
        assert (checkpoint.path, checkpoint.is_folder) == (index.parent, True)
        assert [part.index for part in checkpoint.parts] == [index.name]
        assert [len(header.tensors) for header in checkpoint.parts[0].files] == [2, 1]
        assert list(checkpoint.tensors) == ["a", "b", "c"]
        assert checkpoint.side_files == (Path("config.json"),)

    def test_missing_shard(self, index):
        (index.parent / "m-00002-of-00002.safetensors").unlink()
        assert fault(index) == (
            f"{index.parent}: missing shard 'm-00002-of-00002.safetensors' (named in {index.name})"
        )

    def test_tensor_not_in_its_shard(self, index):
        put_index(index, **{"m-00001-of-00002": "a,b,lost", "m-00002-of-00002": "c"})
        assert fault(index) == f"{index}: 1 tensors are not in the shard it names: 'lost'"

    def test_tensor_in_another_shard(self, index):
        put_index(index, **{"m-00001-of-00002": "a", "m-00002-of-00002": "b,c"})
        assert fault(index) == f"{index}: 1 tensors are not in the shard it names: 'b'"

    def test_tensor_not_listed(self, index):
        put_index(index, **{"m-00001-of-00002": "a", "m-00002-of-00002": "c"})
        assert fault(index) == f"{index}: 1 tensors of the shards are not listed: 'b'"

    def test_tensor_in_two_shards(self, index):
        put(index.parent, "m-00002-of-00002.safetensors=a,b,c")
        assert fault(index) == (
            f"{index.parent}/m-00002-of-00002.safetensors: "
            "2 tensors are in m-00001-of-00002.safetensors too: 'a', 'b'"
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[]", "not a JSON object but []"),
            ("{", "not valid JSON: "),
            ("{}", "has no weight_map"),
            ('{"weight_map": {}}', "has no weight_map"),
            ('{"weight_map": ["a"]}', "has no weight_map"),
            ('{"weight_map": {"a": 1}}', "weight_map names 1, which is no file beside it"),
            ('{"weight_map": {"a": "../x.safetensors"}}', "weight_map names '../x.safetensors', which"),
            ('{"weight_map": {"a": "/etc/passwd"}}', "weight_map names '/etc/passwd', which"),
            (r'{"weight_map": {"a": "c:\\x"}}', r"weight_map names 'c:\\x', which"),
            ('{"weight_map": {"a": ".."}}', "weight_map names '..', which"),
            (r'{"weight_map": {"a": "x\u0000"}}', r"weight_map names 'x\x00', which"),
            ('{"weight_map": {"a": "x", "a": "y"}}', "ambiguous: the key 'a' is there twice"),
        ],
    )
    def test_damaged_index(self, index, content, message):
        index.write_text(content)
        assert fault(index).startswith(f"{index}: {message}")

    def test_shards_without_index(self, index):
        index.unlink()
        assert "holds shards ('m-00001-of-00002.safetensors', " in fault(index.parent)

    def test_index_of_one_standard_file(self, tmp_path):
        put(tmp_path, "model.safetensors")
        put_index(tmp_path / "model.safetensors.index.json", model="w")
        assert opened(tmp_path) == ["model.safetensors"]

    def test_file_and_shards_of_something_else(self, tmp_path):
        put(tmp_path, "model.safetensors", "a-00001-of-00001.safetensors")
        put_index(tmp_path / "model.safetensors.index.json", **{"a-00001-of-00001": "w"})
        assert "holds several sets of weights: 'model.safetensors', 'model.saf" in fault(tmp_path)


class TestFolder:
    @pytest.mark.parametrize(
        ("files", "chosen"),
        [
            (["model.safetensors", "other.safetensors"], "model.safetensors"),
            (["diffusion_pytorch_model.safetensors"], "diffusion_pytorch_model.safetensors"),
            (["adapter_model.safetensors"], "adapter_model.safetensors"),
            (["whatever.v1.safetensors"], "whatever.v1.safetensors"),
            (["consolidated.safetensors", "model.safetensors"], "model.safetensors"),
            (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
            (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin"),
            (["model.fp16.safetensors"], "model.fp16.safetensors"),
            (["model.fp16.safetensors", "model.safetensors"], "model.safetensors"),
        ],
    )
    def test_choice(self, tmp_path, files, chosen):
        assert opened(put(tmp_path, *files)) == [chosen]

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            (
                ["config.json"],
                "no weights in this folder\nName the folder or the file that holds the model. A folder has ",
            ),
            (["training_args.bin"], "no weights in this folder\n"),
            (["a.safetensors", "b.safetensors"], "holds several sets of weights: 'a.safetensors', 'b.safe"),
            (["model.safetensors", "adapter_model.safetensors"], "holds several sets of weights: 'adapter_"),
            (
                ["model.fp16.safetensors", "model.non_ema.safetensors"],
                "has no plain weights, only the variants fp16, non_ema\n"
                "Choose one in the recipe: base: {path: …, variant: fp16}",
            ),
        ],
    )
    def test_no_guessing(self, tmp_path, files, message):
        assert fault(put(tmp_path, *files)).startswith(f"{tmp_path}: {message}")

    def test_sharded_pickles(self, tmp_path):
        put(tmp_path, "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json")
        index = tmp_path / "pytorch_model.bin.index.json"
        assert fault(tmp_path).startswith(f"{index}: sharded .bin files are not supported\nUse")

    def test_variants(self, tmp_path):
        put(tmp_path, "model.safetensors", "model.fp16.safetensors")
        assert opened(tmp_path, "fp16") == ["model.fp16.safetensors"]
        assert fault(tmp_path, "bf16").splitlines()[0] == f"{tmp_path}: has no variant bf16"

    def test_sharded_variant(self, tmp_path):
        name = "diffusion_pytorch_model.fp16-00001-of-00001"
        put(tmp_path, f"{name}.safetensors", "diffusion_pytorch_model.safetensors")
        put_index(tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json", **{name: "w"})
        assert opened(tmp_path, "fp16") == [f"{name}.safetensors"]
        assert opened(tmp_path) == ["diffusion_pytorch_model.safetensors"]

    def test_side_files(self, tmp_path):
        put(
            tmp_path,
            "model.safetensors",
            "model.onnx",
            "pytorch_model.bin.index.json",
            "z.txt",
            "config.json",
            "tokenizer/vocab.json",
            ".git/config",
            ".gitattributes",
            "sub/.cache/x.json",
            "sub/tf_model.h5",
        )
        (tmp_path / "linked.txt").symlink_to(tmp_path / "z.txt")
        side_files = [str(path) for path in open_checkpoint(tmp_path).side_files]
        assert side_files == ["config.json", "linked.txt", "tokenizer/vocab.json", "z.txt"]

    def test_side_files_behind_a_link(self, tmp_path):
        put(tmp_path, "model/model.safetensors", "elsewhere/vocab.json", "elsewhere/sub/merges.txt")
        (tmp_path / "model/tokenizer").symlink_to(tmp_path / "elsewhere")
        side_files = [str(path) for path in open_checkpoint(tmp_path / "model").side_files]
        assert side_files == ["tokenizer/sub/merges.txt", "tokenizer/vocab.json"]
        (tmp_path / "elsewhere/back").symlink_to(tmp_path / "model")
        message = f"{tmp_path}/model/tokenizer/back: is a link to a folder that it lies in"
        assert fault(tmp_path / "model") == message

    def test_links_into_a_cache(self, tmp_path):
        put(tmp_path / "blobs", "abc.safetensors")
        (tmp_path / "snapshot").mkdir()
        (tmp_path / "snapshot/model.safetensors").symlink_to(tmp_path / "blobs/abc.safetensors")
        assert opened(tmp_path / "snapshot") == ["model.safetensors"]

    def test_unreadable_folder(self, tmp_path, monkeypatch):
        def denied(_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", denied)
        with pytest.raises(SurroundingsError, match=f"{tmp_path}: no permission to read it"):
            open_checkpoint(tmp_path)


class TestDiffusers:
    INDEX = json.dumps(
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
        }
    )
    UNET = "unet/diffusion_pytorch_model"

    @pytest.fixture
    def root(self, tmp_path):
        return put(
            tmp_path,
            f"model_index.json={self.INDEX}",
            f"{self.UNET}.safetensors=conv_in.weight",
            f"{self.UNET}.non_ema.safetensors=conv_in.weight",
            "unet/config.json",
            "text_encoder/model.safetensors",
            "scheduler/scheduler_config.json",
        )

    def test_one_part_a_component(self, root):
        checkpoint = open_checkpoint(root)
        assert [part.folder for part in checkpoint.parts] == ["text_encoder", "unet"]
        assert list(checkpoint.tensors) == ["text_encoder/w", "unet/conv_in.weight"]
        info = checkpoint.tensors["unet/conv_in.weight"]
        assert (info.key, info.name) == ("unet/conv_in.weight", "conv_in.weight")
        assert checkpoint.parts[1].files[0].tensors == {info.key: info}
        assert checkpoint.size == sum(part.files[0].size for part in checkpoint.parts)
        assert Path("scheduler/scheduler_config.json") in checkpoint.side_files
        assert Path("model_index.json") in checkpoint.side_files

    def test_variant_where_there_is_one(self, root):
        assert opened(root, "non_ema") == [
            "text_encoder/model.safetensors",
            f"{self.UNET}.non_ema.safetensors",
        ]
        assert fault(root, "fp16").splitlines()[0] == f"{root}: has no variant fp16"

    def test_single_files_beside_the_pipeline_and_folders_it_does_not_name(self, root):
        """stabilityai/stable-diffusion-xl-base-1.0 has both: sd_xl_base_1.0.safetensors and vae_1_0/."""
        before = opened(root)
        put(root, "sd_xl_base.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors")
        assert opened(root) == before

    def test_without_model_index(self, root):
        (root / "model_index.json").unlink()
        assert [part.folder for part in open_checkpoint(root).parts] == ["text_encoder", "unet"]

    def test_pickle_in_a_component(self, root):
        (root / "text_encoder/model.safetensors").unlink()
        put(root, "text_encoder/pytorch_model.bin=a,b")
        tensors = open_checkpoint(root).tensors
        assert list(tensors) == ["text_encoder/a", "text_encoder/b", "unet/conv_in.weight"]
        assert tensors["text_encoder/a"].dtype == "F32"

    def test_sharded_component(self, root):
        (root / f"{self.UNET}.safetensors").rename(root / "unet/s-00001-of-00001.safetensors")
        put_index(root / f"{self.UNET}.safetensors.index.json", **{"s-00001-of-00001": "conv_in.weight"})
        unet = open_checkpoint(root).parts[1]
        assert unet.index == "diffusion_pytorch_model.safetensors.index.json"
        assert list(unet.files[0].tensors) == ["unet/conv_in.weight"]

    def test_damaged_model_index(self, root):
        (root / "model_index.json").write_text("{")
        assert fault(root).startswith(f"{root}/model_index.json: not valid JSON: ")

    def test_no_weights(self, root):
        (root / "model_index.json").write_text("{}")
        assert fault(root).startswith(f"{root}: no weights in this folder\n")


def broken(path):
    """Put links in a file's place: to nothing, and round in circles; return what must be said of each."""
    path.unlink(missing_ok=True)
    path.symlink_to(path.with_name("nowhere"))
    yield f"{path}: is a link to nothing\nRemove it, or fetch the file again."
    path.unlink()
    path.symlink_to(path.name)
    yield f"{path}: cannot be read: Too many levels of symbolic links"
    path.unlink()
    os.mkfifo(path)
    yield f"{path}: is not a regular file"


def a_folder(path):
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    return f"{path}: is a folder, not a file"


class TestUnreadable:
    """What is there and cannot be read is never taken for what is not there."""

    MODEL = ("model.safetensors=a", "config.json")
    PIPELINE = (
        'model_index.json={"unet": ["diffusers", "UNet2DConditionModel"]}',
        "unet/diffusion_pytorch_model.safetensors",
    )
    # What lies in a folder, and a file that may lack and would change what is read.
    FOLDERS = (
        (MODEL, "pytorch_model.bin"),
        (("pytorch_model.bin",), "model.safetensors"),
        (("pytorch_model.bin",), "other.safetensors"),
        (MODEL, "model.safetensors.index.json"),
        (MODEL, "model.fp16.safetensors"),
        (MODEL, "model_index.json"),
        (MODEL, "generation_config.json"),
        ((*MODEL, "tokenizer/vocab.json"), "tokenizer/merges.txt"),
        (MODEL, "tokenizer"),
        (PIPELINE, "text_encoder"),
        (PIPELINE, "unet/config.json"),
        (("unet/diffusion_pytorch_model.safetensors",), "text_encoder"),
    )

    @pytest.mark.parametrize(("files", "name"), FOLDERS)
    def test_in_a_models_folder(self, tmp_path, files, name):
        put(tmp_path, *files)
        open_checkpoint(tmp_path)
        for message in broken(tmp_path / name):
            assert fault(tmp_path) == message

    LORAS = (
        (("adapter_model.safetensors",), "", "adapter_config.json"),
        (("adapter_model.safetensors",), "adapter_model.safetensors", "adapter_config.json"),
        (("renamed.safetensors=base_model.model.a",), "renamed.safetensors", "adapter_config.json"),
        (("renamed.safetensors=module.base_model.model.a",), "renamed.safetensors", "adapter_config.json"),
        (("0000100_adapters.safetensors",), "0000100_adapters.safetensors", "adapter_config.json"),
        (("adapters.safetensors",), "adapters.safetensors", "adapter_config.json"),
        (("adapter_model.bin",), "", "adapter_model.safetensors"),
        (("adapters.safetensors",), "", "adapter_model.safetensors.index.json"),
        (("pytorch_lora_weights.safetensors",), "", "sub/adapter_config.json"),
    )

    @pytest.mark.parametrize(("files", "path", "name"), LORAS)
    def test_beside_a_lora(self, tmp_path, files, path, name):
        put(tmp_path, *files)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        opened = open_lora(tmp_path / path)[1]
        assert opened is None
        if name.startswith("sub/"):
            (tmp_path / name).symlink_to("nowhere")
            assert "the adapter is in a sub-folder: 'sub'" in fault(tmp_path / path, how=open_lora)
            return
        for message in broken(tmp_path / name):
            assert fault(tmp_path / path, how=open_lora) == message
        message = a_folder(tmp_path / name)
        assert fault(tmp_path / path, how=open_lora) == message

    def test_what_is_not_there(self, tmp_path):
        assert not is_there(tmp_path / "a")
        assert not is_there(put(tmp_path, "b.txt") / "b.txt/a")
        assert optional_object(tmp_path / "a") is None
        with pytest.raises(FileError, match="cannot be read: File name too long"):
            is_there(tmp_path / ("a" * 5000))


class TestLora:
    def test_file_without_config(self, tmp_path):
        put(tmp_path, "style.safetensors", "adapter_config.json")
        checkpoint, config = open_lora(tmp_path / "style.safetensors")
        assert (list(checkpoint.tensors), config) == (["w"], None)

    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
    def test_peft_folder_and_its_file(self, tmp_path, name):
        put(tmp_path, name, 'adapter_config.json={"r": 4}', "other.safetensors", "model.safetensors")
        checkpoint, config = open_lora(tmp_path)
        assert (checkpoint.path, checkpoint.is_folder, list(checkpoint.tensors)) == (tmp_path, True, ["w"])
        assert config == {"r": 4}
        assert open_lora(tmp_path / name)[1] == {"r": 4}

    def test_peft_folder_without_config(self, tmp_path):
        assert open_lora(put(tmp_path, "adapter_model.safetensors"))[1] is None

    def test_folder_with_one_file(self, tmp_path):
        checkpoint, config = open_lora(put(tmp_path, "pytorch_lora_weights.safetensors", "README.md"))
        assert (len(checkpoint.tensors), config) == (1, None)

    @pytest.mark.parametrize(
        "name", ["adapters.safetensors", "0000100_adapters.safetensors", "adapters_x.safetensors"]
    )
    def test_mlx_file(self, tmp_path, name):
        put(tmp_path, name, 'adapter_config.json={"lora_parameters": {}}')
        expected = None if name == "adapters_x.safetensors" else {"lora_parameters": {}}
        assert open_lora(tmp_path / name)[1] == expected

    def test_the_last_of_mlx_serves_for_its_folder(self, tmp_path):
        put(tmp_path, "adapter_config.json", "0000100_adapters.safetensors=a", "adapters.safetensors=b")
        assert list(open_lora(tmp_path)[0].tensors) == ["b"]

    def test_only_moments_of_a_training(self, tmp_path):
        put(tmp_path, "adapter_config.json", *(f"0000{n}00_adapters.safetensors" for n in (1, 2)))
        assert fault(tmp_path, how=open_lora) == (
            f"{tmp_path}: has adapters from several moments of their training, and none from its end: "
            "'0000100_adapters.safetensors', '0000200_adapters.safetensors'\n"
            f"Give the one that is meant: {tmp_path}/0000200_adapters.safetensors"
        )

    def test_sharded_adapter(self, tmp_path):
        put(tmp_path, "adapter_model-00001-of-00001.safetensors=a", 'adapter_config.json={"r": 4}')
        put_index(tmp_path / "adapter_model.safetensors.index.json", **{"adapter_model-00001-of-00001": "a"})
        checkpoint, config = open_lora(tmp_path)
        assert (list(checkpoint.tensors), config) == (["a"], {"r": 4})

    def test_peft_file_of_wrapped_modules(self, tmp_path):
        put(
            tmp_path, "a.safetensors=module.base_model.model.x,_orig_mod.base_model.y", 'adapter_config.json={"r": 4}'
        )
        assert open_lora(tmp_path / "a.safetensors")[1] == {"r": 4}

    def test_peft_folder_without_adapter(self, tmp_path):
        put(tmp_path, "adapter_config.json", "model.safetensors")
        assert "has adapter_config.json, but neither adapter_model" in fault(tmp_path, how=open_lora)

    def test_adapters_in_sub_folders(self, tmp_path):
        for name in ("b", "a"):
            put(tmp_path, f"{name}/adapter_config.json", f"{name}/adapter_model.safetensors")
        assert fault(tmp_path, how=open_lora) == (
            f"{tmp_path}: the adapter is in a sub-folder: 'a', 'b'\nGive that one: {tmp_path}/a"
        )

    def test_damaged_config(self, tmp_path):
        put(tmp_path, "adapter_model.safetensors", "adapter_config.json=[]")
        message = f"{tmp_path}/adapter_config.json: not a JSON object but []"
        assert fault(tmp_path, how=open_lora) == message
        assert fault(tmp_path / "adapter_model.safetensors", how=open_lora) == message
