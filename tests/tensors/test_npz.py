"""NumPy archives: what MLX's `savez` and NumPy's write is read in place, and nothing else is."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorabake.errors import FileError
from lorabake.keymap.view import seen
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.npz import open_npz

ARRAYS = {
    "model.layers.0.q.lora_a": np.arange(6, dtype=np.float32).reshape(3, 2),
    "model.layers.0.q.lora_b": np.arange(8, dtype=np.float16).reshape(2, 4),
    "wide": np.arange(24.0).reshape(2, 3, 4),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "whole": np.arange(5, dtype=np.int64),
}


def values(info: TensorInfo) -> bytes:
    return info.file.read_bytes()[info.start : info.stop]


def by_hand(path: Path, header: str, data: bytes, *, name: str = "x.npy", **member: int) -> Path:
    """Write an archive of one array with a header of our own, padded as MLX pads."""
    text = header.encode() + b"\n"
    with zipfile.ZipFile(path, "w", **member) as archive:  # type: ignore[call-overload]
        archive.writestr(name, b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    return path


def fault(path: Path) -> str:
    with pytest.raises(FileError) as caught:
        open_npz(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_arrays_are_found_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "adapters.npz"
    np.savez(path, **ARRAYS)
    header = open_npz(path)
    assert list(header.tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        info = header.tensors[name]
        assert (info.key, info.name, info.shape, info.file) == (name, name, array.shape, path)
        assert values(info) == array.tobytes()
    assert [info.dtype for info in header.tensors.values()] == ["F32", "F16", "F64", "F32", "F32", "I64"]
    assert header.size == path.stat().st_size
    assert header.data_start == min(info.start for info in header.tensors.values())
    assert open_checkpoint(path).tensors == header.tensors


def test_what_mlx_writes_is_read(tmp_path: Path) -> None:
    """bfloat16 as `<V2`, a comma after the last size, vectors that are in Fortran's order as well."""
    path = by_hand(tmp_path / "a.npz", "{'descr': '<V2', 'fortran_order': True, 'shape': (3, )}", bytes(range(6)))
    info = open_npz(path).tensors["x"]
    assert (info.dtype, info.shape, values(info)) == ("BF16", (3,), bytes(range(6)))


def test_a_matrix_by_columns_is_turned(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.asfortranarray(ARRAYS["model.layers.0.q.lora_a"]))
    info = open_npz(path).tensors["x"]
    weight = seen(info)
    assert (weight.shape, weight.tensor) == ((3, 2), None)
    (part,) = weight.parts.values()
    assert part is info
    assert (part.dtype, part.shape) == ("F32", (2, 3))
    assert np.frombuffer(values(part), np.float32).reshape(2, 3).T.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    assert fault(path).startswith("'x' holds |O, no plain numbers")


DAMAGED = "a damaged NumPy archive: "


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (
            "{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}",
            bytes(4),
            "'x' holds >f4, no plain numbers of this",
        ),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", bytes(8), "'x' holds <c8, no plain numbers"),
        (
            "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2, 3)}",
            bytes(24),
            "'x' is stored by columns\nLoad it",
        ),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
            bytes(4),
            "a damaged NumPy archive: 'x' says (2,)",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(4), "a damaged NumPy archive: "),
        ("{'descr': '<f4', 'shape': (1,)}", bytes(4), "a damaged NumPy archive: "),
        ("__import__('os').abort()", b"", "a damaged NumPy archive: "),
        ("{" * 5000, b"", "a damaged NumPy archive: "),
    ],
)
def test_what_is_no_plain_array_is_refused(header: str, data: bytes, message: str, tmp_path: Path) -> None:
    assert fault(by_hand(tmp_path / "a.npz", header, data)).startswith(message)


def test_what_cannot_be_read_in_place_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(100))
    assert fault(path) == (
        "'x' is compressed, and cannot be read in place\n"
        "Load it with numpy.load, and save its arrays with safetensors.numpy.save_file."
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "a")
    assert fault(path) == "holds 'notes.txt', which is no array"
    path.write_bytes(b"PK\x03\x04 and no more")
    assert fault(path).startswith("a damaged NumPy archive: ")
    assert fault(tmp_path / "none.npz") == "no such file"


def pieces() -> Iterator[bytes]:
    stream = io.BytesIO()
    np.savez(stream, a=ARRAYS["whole"], b=ARRAYS["model.layers.0.q.lora_b"])
    yield stream.getvalue()


(GOOD,) = pieces()


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_archive_is_refused_or_lies_in_its_file(tmp_path: Path, at: int, byte: int, cut: bool) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(GOOD[:at] if cut else GOOD[:at] + bytes([byte]) + GOOD[at + 1 :])
    try:
        header = open_npz(path)
    except FileError:
        return
    assert all(0 <= info.start <= info.stop <= header.size for info in header.tensors.values())
