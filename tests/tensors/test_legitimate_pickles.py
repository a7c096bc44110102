"""Whatever torch saves, and loads by its restricted reader, is read bit for bit, or refused by name."""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import pytest
import torch
from torch._weights_only_unpickler import _get_allowed_globals

from lorabake.errors import FileError
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.pickles import open_pickle
from lorabake.tensors.pickles.machine import load
from lorabake.tensors.pickles.names import NAMES

Tensors = Mapping[str, torch.Tensor]
FORMS = [("zip", 2), ("zip", 3), ("zip", 4), ("zip", 5), ("legacy", 2), ("legacy", 3), ("legacy", 4), ("legacy", 5)]
KNOWN = {getattr(torch, dtype.torch): dtype.name for dtype in DTYPES.values() if dtype.torch}
TORCH = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)


def saved(path: Path, content: object, form: str = "zip", protocol: int = 2) -> Path:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    return path


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    plain = tensor.detach().resolve_conj().resolve_neg()
    packed = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(plain).reshape(-1)
    raw = packed.view(torch.uint8).numpy().tobytes() if packed.numel() else b""
    return tensor.dtype, tuple(tensor.shape), raw


def found(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    """Read each tensor's bytes where the header says that they lie."""
    result = {}
    for key, info in open_pickle(path).tensors.items():
        with open(info.file, "rb") as stream:
            stream.seek(info.start)
            raw = stream.read(info.nbytes)
        assert len(raw) == info.nbytes
        result[key] = getattr(torch, DTYPES[info.dtype].torch or ""), info.shape, raw
    return result


def flat(content: object) -> dict[str, torch.Tensor]:
    result = {}
    for key, value in content.items():  # type: ignore[attr-defined]
        if isinstance(value, torch.Tensor):
            result[key] = value
        else:
            result |= {f"{key}.{name}": each for name, each in flat(value).items()}
    return result


def with_metadata() -> OrderedDict[str, torch.Tensor]:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    assert state._metadata  # type: ignore[attr-defined]
    return state


def attributed() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "mine"  # type: ignore[attr-defined]
    return parameter


WHOLE = torch.arange(24.0).reshape(2, 3, 4)
RAW = torch.arange(64, dtype=torch.uint8)
PLACE = torch.arange(10, dtype=torch.int16)
COMPLEX = torch.tensor([[1 + 2j, 3 - 4j], [0 - 0j, -5j]], dtype=torch.complex64)
CONTENTS: dict[str, object] = {
    "one value, odd strides": {"w": WHOLE.as_strided((1, 1), (7, 3)), "v": WHOLE.as_strided((1,), (11,), 5)},
    "no dimension": {"w": torch.tensor(2.5), "v": WHOLE[1, 2, 3], "alpha": torch.tensor(4)},
    "empty": {"w": torch.empty(0), "v": torch.empty(3, 0, 2).transpose(0, 2), "u": WHOLE[:0]},
    "one storage": {"a": WHOLE, "b": WHOLE, "c": WHOLE.view(6, 4), "d": WHOLE[1]},
    "views": {"a": PLACE[3:7], "b": PLACE[::3], "c": WHOLE[:, 1, ::2], "d": WHOLE[..., 1:3]},
    "turned": {"a": WHOLE.mT, "b": WHOLE.permute(2, 0, 1), "c": WHOLE[0].T},
    "expanded": {"a": torch.ones(1, 3).expand(4, 3), "b": PLACE[1].expand(2, 2), "c": WHOLE[:1].expand(5, 3, 4)},
    "overlapping": {"a": torch.arange(6.0).as_strided((3, 3), (1, 1))},
    "conjugated and negated": {
        "a": COMPLEX.conj(), "b": COMPLEX.T.conj(), "c": COMPLEX.clone().conj().imag, "d": COMPLEX.clone().real,
        "e": COMPLEX.clone().imag.T, "f": COMPLEX.clone().conj().imag.T[:1],
    },
    "channels last": {"a": torch.arange(48.0).reshape(2, 3, 4, 2).to(memory_format=torch.channels_last)},
    "a state dict of a module": with_metadata(),
    "nested": {"unet": {"down": {"w": torch.ones(2)}, "up": torch.ones(1)}, "text": OrderedDict(w=torch.zeros(3))},
    "parameters": {"w": torch.nn.Parameter(torch.ones(2, 3)), "v": attributed(), "u": torch.nn.Buffer(torch.ones(1))},
    "with gradients": {"w": torch.ones(2, requires_grad=True)},
    "odd names": {"": torch.ones(1), "naïve 名": torch.ones(2), "a b\n": torch.ones(3), "x" * 300: torch.ones(4)},
    "many": {f"layer.{index}": torch.full((2,), float(index)) for index in range(1100)},
    **{
        str(dtype): {"w": RAW.view(dtype), "turned": RAW.view(dtype).reshape(2, -1).T, "one": RAW.view(dtype)[3]}
        for dtype in KNOWN
        if dtype is not torch.bool
    },
    "torch.bool": {"w": torch.tensor([[True, False], [False, False]]), "turned": torch.tensor([[True, False]]).T},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize(("form", "protocol"), FORMS)
def test_what_torch_reads_is_read_bit_for_bit(form: str, protocol: int, tmp_path: Path) -> None:
    unread = set()
    for name, content in CONTENTS.items():
        path = saved(tmp_path / "a.pt", content, form, protocol)
        try:
            loaded = flat(torch.load(path, weights_only=protocol < 4))  # its restricted reader knows no newer ones
        except AttributeError:  # torch saves its newer dtypes in the older form, too, but does not load them
            unread.add(name)
            loaded = flat(content)
        assert found(path) == {key: bits(tensor) for key, tensor in loaded.items()}, name
        assert list(found(path)) == list(loaded)
    assert len(unread) == (0 if form == "zip" else 8), unread
    assert len(CONTENTS) > 25


def test_every_dtype_of_torchs_is_read_or_refused_by_name(tmp_path: Path) -> None:
    for dtype in TORCH:
        if dtype in KNOWN:
            continue
        for form in ("zip", "legacy"):
            path = tmp_path / "a.pt"
            try:
                saved(path, {"w": torch.empty(16, dtype=torch.uint8).view(dtype)}, form)
            except (RuntimeError, KeyError, NotImplementedError, AttributeError, TypeError):
                continue  # torch itself cannot make or save it
            with pytest.raises(FileError) as caught:
                open_pickle(path)
            message = str(caught.value)
            assert f"'w' cannot be stored in SafeTensors: strided, cpu, {str(dtype)[6:]}" in message


@pytest.mark.filterwarnings("ignore")  # torch warns that it will drop some of these
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_every_layout_of_torchs_is_refused_by_name(form: str, tmp_path: Path) -> None:
    made = {
        "sparse_coo": torch.eye(2).to_sparse(),
        "sparse_csr": torch.eye(2).to_sparse_csr(),
        "sparse_csc": torch.eye(2).to_sparse_csc(),
        "sparse_bsr": torch.eye(2).to_sparse_bsr((1, 1)),
        "meta": torch.ones(2, device="meta"),
        "quantized": torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8),
        "quantized ": torch.quantize_per_channel(
            torch.ones(2, 2), torch.ones(2), torch.zeros(2, dtype=torch.int64), 0, torch.quint8
        ),
        "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    }
    for kind, tensor in made.items():
        path = saved(tmp_path / "a.pt", {"w": tensor}, form)
        with pytest.raises(FileError, match=f"'w' cannot be stored in SafeTensors: .*{kind.strip()}"):
            open_pickle(path)


def test_every_name_that_torch_allows_is_known() -> None:
    """What torch's restricted reader takes is at least refused for what it is, and not as code."""
    unread = {"torch.storage.TypedStorage"}  # a class that no file names: its storages have names of their own
    assert _get_allowed_globals().keys() - NAMES.keys() <= unread


def test_storages_of_an_accelerator_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.arange(3.0)})
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    for place in (b"cuda:0", b"mps", b"xpu:3"):
        pickled = members["a/data.pkl"].replace(b"X\x03\0\0\0cpu", b"X" + len(place).to_bytes(4, "little") + place)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, pickled if name == "a/data.pkl" else content)
        assert found(path) == {"w": bits(torch.arange(3.0))}


@pytest.mark.parametrize("kept", [True, False])
def test_archives_that_other_programs_packed_again(kept: bool, tmp_path: Path) -> None:
    """Compressed, in another order, with folders' names and remarks, and without torch's padding."""
    content = {"w": torch.zeros(4000), "v": torch.arange(6.0).reshape(2, 3).T}
    path = saved(tmp_path / "a.pt", content)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = b"packed again"
        for name, raw in sorted(members.items(), reverse=True):
            archive.writestr(name.replace("a/", "any name/", 1), raw, zipfile.ZIP_STORED if kept else None)
    assert found(path) == {key: bits(tensor) for key, tensor in content.items()}


def test_lightnings_checkpoints(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0), "best_k": {}}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-4, "shape": torch.Size([1, 2]), "dtype": torch.float16, "names": {"a", "b"}},
    }
    for form in ("zip", "legacy"):
        path = saved(tmp_path / "a.ckpt", content, form)
        assert found(path) == {key: bits(tensor) for key, tensor in model.state_dict().items()}


def test_of_the_other_order_of_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"w": torch.ones(2)})
    raw = path.read_bytes().replace(b"little", b"big\0\0\0")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else content)
    with pytest.raises(FileError, match="has the highest byte first"):
        open_pickle(path)
    path.write_bytes(raw)  # not the checksum any more
    with pytest.raises(FileError, match="CRC"):
        open_pickle(path)
    legacy = saved(tmp_path / "b.pt", {"w": torch.ones(2)}, "legacy").read_bytes()
    assert legacy.count(b"little_endianq\x02\x88") == 1
    path.write_bytes(legacy.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with pytest.raises(FileError, match="has the highest byte first"):
        open_pickle(path)


def test_pickles_of_python_itself_are_read_as_python_reads_them() -> None:
    """Every opcode that Python writes for plain values, at every protocol, with the memo that shares them."""
    import pickle

    shared: list[object] = [1, 2]
    plain = {
        "whole": [0, 255, 65_536, -1, 1 << 40, -(1 << 70), True, False, None],
        "parts": [0.5, -0.0, 1e300],
        "texts": ["", "a", "é名", "x" * 300, "line\nbreak"],
        "bytes": [b"", b"abc", bytes(300)],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "shared": [shared, shared],
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = plain if protocol > 2 else {key: value for key, value in plain.items() if key != "bytes"}
        read = load(BytesIO(pickle.dumps(content, protocol)), {}, lambda _: None)
        assert read == content
        assert re.sub(r"\s", "", repr(read)) == re.sub(r"\s", "", repr(content))
        assert read["shared"][0] is read["shared"][1]  # type: ignore[index]
