import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabake import bake, load_recipe, plan
from lorabake.errors import FileError, SurroundingsError
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.pickles import open_pickle, storages
from lorabake.tensors.pickles.machine import PickleError, load
from tests import builders as b

SHARED = Path(__file__).parents[3] / "shared" / "loras"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lora.pt"


def values(path):
    """Read each tensor where the header says that it lies."""
    found = {}
    for key, info in open_pickle(path).tensors.items():
        with open(info.file, "rb") as stream:
            stream.seek(info.start)
            raw = bytearray(stream.read(info.nbytes))
        dtype = getattr(torch, DTYPES[info.dtype].torch)
        found[key] = (torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)).reshape(info.shape)
    return found


def stored(path, content, **how):
    torch.save(content, path, **how)
    return values(path)


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
    assert torch.equal(values(path)["w"], torch.zeros(64))


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


def test_the_same_file_is_read_once_and_a_changed_one_again(path):
    torch.save({"w": torch.ones(1)}, path)
    first = open_pickle(path)
    assert first.path == path
    assert open_pickle(path) is first
    torch.save({"w": torch.ones(5000)}, path)
    assert open_pickle(path).tensors["w"].shape == (5000,)


def test_tensors_in_one_piece_stay_where_they_are(path):
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"whole": whole, "rows": whole[1:], "one": whole[:1, :1], "turned": whole.T}, path)
    found = open_pickle(path).tensors
    assert {key for key, info in found.items() if info.file == path} == {"whole", "rows", "one"}
    assert found["rows"].start == found["whole"].start + 16
    assert torch.equal(values(path)["one"], whole[:1, :1])


def test_no_room_for_the_temporary_file(path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    torch.save({"w": torch.ones(2, 3).T}, path)
    monkeypatch.setattr(storages, "_scratch", full)
    with pytest.raises(SurroundingsError, match="No space left on device\nSet TMPDIR"):
        open_pickle(path)


def test_nothing_is_left_of_a_killed_process(path, tmp_path):
    torch.save({"w": torch.ones(2, 3).T}, path)
    code = (
        "import os, pathlib, sys; from lorabake.tensors.pickles import open_pickle\n"
        "info = open_pickle(pathlib.Path(sys.argv[1])).tensors['w']\n"
        "assert 'torch' not in sys.modules and len(info.file.read_bytes()) == 24\n"
        "os.kill(os.getpid(), 9)"
    )
    root, folder = Path(__file__).parents[2], tmp_path / "scratch"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, env={**os.environ, "TMPDIR": str(folder)})
    assert done.returncode == -9
    assert not [*folder.iterdir()]


# -- hostile ones ----------------------------------------------------------------------------------------


def packed(path, program, **records):
    """Write a zip archive as torch.save does, of a pickle's bytes and records."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in {"version": b"3", "byteorder": b"little", **records}.items():
            archive.writestr(f"archive/{name.replace('_', '/')}", content)


def tensor(shape, strides, *, kind="FloatStorage", count=4, offset=0, key="0"):
    """Write the opcodes of a tensor of float32 in a storage of `count` values."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n" + kind.encode() + b"\n"
        + f"S'{key}'\nS'cpu'\nI{count}\ntQI{offset}\n".encode()
        + b"".join(b"(" + "".join(f"I{size}\n" for size in sizes).encode() + b"t" for sizes in (shape, strides))
        + b"I00\nccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


def a_dict(**values):
    return b"}" + b"".join(b"S'" + key.encode() + b"'\n" + value + b"s" for key, value in values.items()) + b"."


FLOATS = bytes(16)
HOSTILE = {
    "a call of eval": (a_dict(w=b"cbuiltins\neval\n(S'1'\ntR"), "a pickle that wants to run code: 'builtins.eval'"),
    "memory that nothing filled": (a_dict(w=b"ctorch\nFloatTensor\n(I1000\ntR"), "values are not in the file"),
    "a tensor class filled later": (a_dict(w=b"ctorch\nTensor\n)\x81"), "values are not in the file"),
    "a deep tuple": (b"(" * 200_000 + b"t" * 200_000 + b".", "holds a tuple"),
    "a deep tuple as a name": (b"}" + b"(" * 200_000 + b"t" * 200_000 + b"NSs.", "not a readable PyTorch file"),
    "a long text": (b"\x80\x02X\xff\xff\xff\x7f", "not a readable PyTorch file"),
    "a mark too few": (b"t.", "no mark"),
    "an endless memo": (b"j\xff\xff\xff\xff.", "not a readable PyTorch file"),
    "an attribute of a number": (b"I1\nI2\nb.", "attributes of what has none"),
    "a stride beyond the storage": (a_dict(w=tensor((2,), (9,))), "reaches over the end of its storage"),
    "an offset beyond the storage": (a_dict(w=tensor((2,), (1,), offset=3)), "reaches over the end of its storage"),
    "a short record": (a_dict(w=tensor((8,), (1,), count=8)), "reaches over the end of its storage"),
    "a record that is not there": (a_dict(w=tensor((1,), (1,), key="7")), "its values are not in the file"),
    "a negative stride": (a_dict(w=tensor((2,), (-1,))), "a shape that is none"),
    "a value a million times": (a_dict(w=tensor((1 << 30,), (0,))), "more than the whole file holds"),
    "one storage in many tensors": (
        a_dict(**{f"w{i}": tensor((1 << 20, 4), (0, 1)) for i in range(9)}), "its tensors claim",
    ),
    "a whole number as a text": (b"I" + b"9" * 5000 + b"\n.", "not a readable PyTorch file"),
    "a place in the memo of its own choice": (b"Np2305843009213693951\n.", "not a readable PyTorch file"),
    "one long tuple as the arguments of many calls": (
        b"(" + b"N" * 9000 + b"tq\x010cbuiltins\nset\nq\x020" + b"h\x02h\x01R0" * 9000 + b"}.", "steps",
    ),
    "an opcode of no torch file": (b"\x97.", "not a readable PyTorch file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(path, name):
    program, message = HOSTILE[name]
    packed(path, program, data_0=FLOATS)
    assert message in fault(path)


def test_keys_of_one_hash_take_no_time(path):
    keys = b"".join(f"L{(2**61 - 1) * number}L\nN".encode() for number in range(1, 20_000))
    packed(path, b"}(" + keys + b"u.")
    began = time.process_time()
    assert "holds more than tensors by name" in fault(path)
    assert time.process_time() - began < 2  # each compared with each took four seconds


def test_strides_of_sides_of_one_value_may_be_anything(path):
    packed(path, a_dict(w=tensor((1, 2), (1 << 61, 0))), data_0=bytes(12) + b"\0\0\x80\x3f")
    assert torch.equal(values(path)["w"], torch.zeros(1, 2))


def test_bytes_that_are_not_those_of_the_archive_are_noticed(tmp_path):
    """A header is right though a record is damaged; whoever reads the record finds out."""
    base = b.sd1()
    torch.save(base, tmp_path / "base.ckpt")
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path, base="base.ckpt", loras=["lora.safetensors"])
    info = next(info for info in open_pickle(tmp_path / "base.ckpt").tensors.values() if info.nbytes > 8)
    with (tmp_path / "base.ckpt").open("r+b") as stream:
        stream.seek(info.start + 3)
        stream.write(b"\x55")
    with pytest.raises(FileError, match=r"damaged: bytes \d+ to \d+ are not those"):
        bake(load_recipe(recipe))
    assert not (tmp_path / "out.safetensors").exists()


def test_a_base_that_is_turned_in_memory_is_baked_alike(tmp_path):
    """What a pickle holds rearranged is planned and baked as what lies there in order."""
    base = b.sd1()
    b.sd1_lora(tmp_path / "lora.safetensors")
    made = []
    for turned in (False, True):
        state = {key: each.mT.contiguous().mT if each.dim() == 2 and turned else each for key, each in base.items()}
        torch.save(state, tmp_path / "base.ckpt")
        made.append(b.tensor_bytes(b.bake_sd1(tmp_path, base="base.ckpt")))
    assert made[0] == made[1]


def test_texts_of_old_pythons_keep_their_escapes(path):
    """Python 2 wrote texts as it shows them; escapes that are none would make Python warn."""
    for written, meant in ((rb"'a\\q\n\x41'", "a\\q\nA"), (rb"'it\'s'", "it's"), (rb"'\101'", "A")):
        assert load(BytesIO(b"S" + written + b"\n."), {}, lambda _: None) == meant
    for written, meant in ((rb"'\q'", "\\q"), (rb"'a\\\q'", "a\\\\q")):
        assert load(BytesIO(b"S" + written + b"\n."), {}, lambda _: None) == meant
    with pytest.raises(PickleError):
        load(BytesIO(rb"S'\777'" + b"\n."), {}, lambda _: None)


def test_a_pickle_replaced_after_the_plan_is_noticed(tmp_path):
    torch.save(b.sd1(), tmp_path / "base.ckpt")
    b.sd1_lora(tmp_path / "lora.safetensors")
    planned = plan(load_recipe(b.recipe(tmp_path, base="base.ckpt", loras=["lora.safetensors"])))
    torch.save({key: value + 1 for key, value in b.sd1().items()}, tmp_path / "base.ckpt")
    with pytest.raises(FileError, match="changed since the bake was planned"):
        bake(planned)


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
        result = values(path)
        assert result.keys() == loaded.keys()
        assert all(torch.equal(result[key], loaded[key]) for key in loaded)
