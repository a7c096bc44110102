import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lorabake.errors import FileError, SurroundingsError
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.pickles import open_pickle

SHARED = Path(__file__).parents[3] / "shared" / "loras"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lora.pt"


def stored(path, content, **how):
    torch.save(content, path, **how)
    return load_file(open_pickle(path).path)


def fault(path, content=None):
    if content is not None:
        torch.save(content, path)
    with pytest.raises(FileError) as caught:
        open_pickle(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64],
)
def test_values_survive(path, dtype, zipped):
    tensors = {"b": torch.arange(6).reshape(2, 3).to(dtype), "a": torch.tensor(1, dtype=dtype)}
    result = stored(path, tensors, _use_new_zipfile_serialization=zipped)
    assert list(open_pickle(path).tensors) == ["b", "a"]
    for key, tensor in tensors.items():
        assert result[key].dtype == dtype
        assert torch.equal(result[key], tensor)


def test_views_aliases_and_parameters(path):
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": whole,
        "again": whole,
        "turned": whole.T,
        "strided": whole[:, ::2],
        "repeated": torch.ones(1, 2).expand(3, 2),
        "learned": torch.nn.Parameter(torch.ones(2)),
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "empty": torch.ones(0, 3),
    }
    result = stored(path, tensors)
    assert result.keys() == tensors.keys()
    assert all(torch.equal(result[key], tensor) for key, tensor in tensors.items())


def test_nested_dicts_become_dotted_keys(path):
    content = OrderedDict(unet={"down": {"weight": torch.ones(1)}, "up": torch.ones(2)}, last=torch.ones(3))
    torch.save(content, path)
    assert list(open_pickle(path).tensors) == ["unet.down.weight", "unet.up", "last"]


def test_training_state_around_the_weights_is_left_out(path):
    wrapper = {"epoch": 3, "global_step": 9.0, "version": "2.1", "seed": None, "optimizer_states": [{"x": 1}]}
    assert stored(path, wrapper | {"state_dict": {"w": torch.ones(1)}}).keys() == {"w"}


@pytest.mark.parametrize(("name", "component"), [("lora.pt", "unet"), ("lora.text_encoder.pt", "text_encoder")])
def test_bare_list_of_pairs(tmp_path, name, component):
    matrices = [
        torch.full((4, 1), 0.0),
        torch.full((1, 3), 1.0),
        torch.full((5, 1), 2.0),
        torch.full((1, 4), 3.0),
    ]
    result = stored(tmp_path / name, matrices)
    for position, key in enumerate(("0:up", "0:down", "1:up", "1:down")):
        assert torch.equal(result[f"{component}:{key}"], matrices[position])


def test_compressed_zip_is_read_right(path):
    """Mapping a compressed file into memory would give the compressed bytes as values."""
    torch.save({"w": torch.zeros(64)}, path)
    with zipfile.ZipFile(path) as plain:
        members = {info.filename: plain.read(info) for info in plain.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    result = load_file(open_pickle(path).path)
    assert torch.equal(result["w"], torch.zeros(64))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"w": torch.ones(1), "rank": 4}, "holds more than tensors by name: 'rank (int)'"),
        ({"w": [1, 2]}, "holds more than tensors by name: 'w (list)'"),
        ({"in": {7: torch.ones(1)}}, "holds more than tensors by name: 'in (dict)'"),
        (
            {str(i): i for i in range(5)},
            "holds more than tensors by name: '0 (int)', '1 (int)', '2 (int)' and 2 more",
        ),
        (
            {"state_dict": {}, "ema": {"w": torch.ones(1)}},
            "beside state_dict there is more than training state: 'ema'",
        ),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "two tensors would have the key 'a.b'"),
        ({"__metadata__": torch.ones(1)}, "has a key that SafeTensors cannot hold"),
        (torch.ones(1), "holds a Tensor, not tensors by name"),
        (5, "holds a int, not tensors by name"),
        ([torch.ones(2, 1)], "holds a list, but not of pairs of LoRA matrices"),
        ([torch.ones(2, 1), torch.ones(2)], "holds a list, but not of pairs of LoRA matrices"),
        ([torch.ones(2, 1), "rank"], "holds a list, but not of pairs of LoRA matrices"),
        ({"w": torch.eye(2).to_sparse()}, "'w' cannot be stored in SafeTensors: sparse_coo, cpu, float32"),
        ({"w": torch.ones(1, device="meta")}, "'w' cannot be stored in SafeTensors: strided, meta, float32"),
        (
            {"w": torch.ones(1, dtype=torch.complex128)},
            "'w' cannot be stored in SafeTensors: strided, cpu, complex128",
        ),
        (
            {"w": torch.ones(1).expand(2**40)},
            "'w' claims 4398046511104 bytes, more than the whole file holds",
        ),
    ],
)
def test_refuses(path, content, message):
    assert fault(path, content).startswith(message)


def test_a_dict_that_contains_itself(path):
    circle = {"w": torch.ones(1)}
    circle["self"] = circle
    assert fault(path, circle).startswith("holds more than tensors by name: 'self (dict)'")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(path, tmp_path, zipped):
    torch.save({"w": Malicious(tmp_path / "owned")}, path, _use_new_zipfile_serialization=zipped)
    message = fault(path)
    assert message.startswith("a pickle that wants to run code: 'posix.mkdir'\nUse the model's SafeTensors")
    assert not (tmp_path / "owned").exists()


def test_a_plain_pickle_is_no_torch_file(path):
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    assert fault(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(path, zipped):
    torch.save({"w": torch.ones(100)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-150])
    assert fault(path).startswith("not a readable PyTorch file: ")


def test_missing(path):
    assert fault(path) == "no such file"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")  # torch only warns of an odd version
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_mutated_pickles_give_a_file_error_or_tensors(path, data):
    torch.save({"w": torch.ones(2), "half": torch.ones(3).half()}, path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(60, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        header = open_pickle(path)
    except FileError:
        return
    assert header.tensors


def test_the_same_file_is_stored_once_and_a_changed_one_again(path):
    torch.save({"w": torch.ones(1)}, path)
    first = open_pickle(path)
    assert first.path.name == "lora.safetensors"
    assert open_pickle(path) is first
    torch.save({"w": torch.ones(5000)}, path)
    assert open_pickle(path).tensors["w"].shape == (5000,)


def test_no_room_for_the_temporary_file(path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    torch.save({"w": torch.ones(1)}, path)
    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(SurroundingsError, match="No space left on device\nSet TMPDIR"):
        open_pickle(path)


def test_temporary_files_go_with_the_process(path):
    torch.save({"w": torch.ones(1)}, path)
    code = (
        "import pathlib, sys; from lorabake.tensors.pickles import open_pickle\n"
        "print(open_pickle(pathlib.Path(sys.argv[1])).path)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True, cwd=root)
    temporary = Path(done.stdout.strip())
    assert temporary.is_absolute()
    assert not temporary.parent.parent.exists()


@pytest.mark.skipif(not SHARED.exists(), reason="the shared LoRA files are not here")
class TestRealFiles:
    @pytest.mark.parametrize(
        ("name", "count", "key", "shape"),
        [
            ("cloneofsimo_sd15/lora_kiriko.pt", 256, "unet:0:up", (320, 4)),
            ("cloneofsimo_sd15/lora_kiriko.text_encoder.pt", 184, "text_encoder:0:down", (4, 1024)),
        ],
    )
    def test_bare_lists(self, name, count, key, shape):
        tensors = open_checkpoint(SHARED / name).tensors
        assert len(tensors) == count
        assert tensors[key].shape == shape

    def test_values_are_those_that_torch_loads(self):
        path = SHARED / "attn_procs_sd15/pytorch_lora_weights.bin"
        loaded = torch.load(path, weights_only=True, map_location="cpu")
        result = load_file(open_pickle(path).path)
        assert result.keys() == loaded.keys()
        assert all(torch.equal(result[key], loaded[key]) for key in loaded)
