"""Digests are those that other programs take, and fingerprints tell weights and nothing else."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lorabake.artifacts import hashes
from lorabake.artifacts.digests import file_digest, folder_sha256
from lorabake.artifacts.hashes import Hashes, hash_path
from lorabake.cli import lorabake
from lorabake.errors import FileError
from tests import builders as b
from tests.documents import check


def networks(path: Path) -> dict[str, str]:
    return {network.component: network.sha256 for network in hash_path(path).networks}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Make a Stable Diffusion checkpoint of more than one mebibyte."""
    tensors = b.sd1() | {"padding": torch.arange(600_000, dtype=torch.int32)}
    return b.save(tmp_path / "base.safetensors", tensors, metadata={"modelspec.title": "one"})


# -- Digests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1 << 12, 1 << 16, 8 << 20])
def test_digests_are_those_of_other_programs(base: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(hashes, "PIECE", piece)
    raw = base.read_bytes()
    (file,) = hash_path(base).files
    data = b.header(base)[2]
    assert file.size == len(raw)
    assert file.sha256 == hashlib.sha256(raw).hexdigest()
    assert file.autov2 == file.sha256[:10].upper()
    assert file.autov1 == hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8].upper()
    assert file.crc32 == f"{zlib.crc32(raw):08X}"
    assert file.data_sha256 == hashlib.sha256(data).hexdigest()
    assert file.autov3 == hashlib.sha256(data).hexdigest()[:12].upper()


def test_the_fingerprint_is_as_described(tmp_path: Path) -> None:
    path = b.save(tmp_path / "a.safetensors", {"b": torch.ones(2, 3), "a": torch.zeros(0), "c": torch.tensor(1.5)})
    listed = [
        ["a", "F32", [0], hashlib.sha256(b"").hexdigest()],
        ["b", "F32", [2, 3], hashlib.sha256(torch.ones(2, 3).numpy().tobytes()).hexdigest()],
        ["c", "F32", [], hashlib.sha256(torch.tensor(1.5).numpy().tobytes()).hexdigest()],
    ]
    text = json.dumps(listed, separators=(",", ":"))
    assert hash_path(path).content == hashlib.sha256(text.encode()).hexdigest()


def test_other_formats_have_no_digest_of_their_data(tmp_path: Path) -> None:
    torch.save(b.sd1(), tmp_path / "base.ckpt")
    found = hash_path(tmp_path / "base.ckpt")
    assert (found.content, found.networks, found.files[0].data_sha256) == (None, (), None)
    assert found.sha256 == b.sha256(tmp_path / "base.ckpt")


def test_a_folder_has_the_digest_that_a_lock_has(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    root = tmp_path / "base"
    files = [path for path in root.rglob("*") if path.is_file()]
    expected = folder_sha256(file_digest(path, path.relative_to(root).as_posix()) for path in files)
    assert hash_path(root).sha256 == expected


def test_a_file_that_changes_meanwhile_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(count: int) -> None:
        with base.open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"x")

    with pytest.raises(FileError, match="changed while it was read"):
        hash_path(base, progress=change)


# -- What fingerprints tell ------------------------------------------------------------------------------


def resaved(path: Path, name: str, change: object = None, **said: str) -> Hashes:
    """Save a file's tensors anew, with other metadata and in another order."""
    tensors = {key: tensor.clone() for key, tensor in reversed(load_file(path).items())}
    if callable(change):
        change(tensors)
    save_file(tensors, path.with_name(name), metadata=said or None)
    return hash_path(path.with_name(name))


def test_header_and_order_do_not_matter(base: Path) -> None:
    one, other = hash_path(base), resaved(base, "other.safetensors", title="two")
    assert one.content == other.content
    assert one.networks == other.networks
    assert one.sha256 != other.sha256


def test_any_bit_name_or_dtype_matters(base: Path) -> None:
    def flip(tensors: b.Tensors) -> None:
        tensors[b.SD1_KEYS[b.Q]].view(torch.int16)[0, 0] ^= 1

    def rename(tensors: b.Tensors) -> None:
        tensors["padding2"] = tensors.pop("padding")

    def recast(tensors: b.Tensors) -> None:
        tensors["padding"] = tensors["padding"].view(torch.float32)

    contents = {
        hash_path(base).content,
        *(resaved(base, "x.safetensors", how).content for how in (flip, rename, recast)),
    }
    assert len(contents) == 4
    before, after = networks(base), {n.component: n.sha256 for n in resaved(base, "y.safetensors", flip).networks}
    assert {name for name in before if before[name] != after[name]} == {"unet"}


def test_sharding_does_not_matter(tmp_path: Path) -> None:
    b.llama(tmp_path / "one")
    b.llama(tmp_path / "three", shards=3)
    assert hash_path(tmp_path / "one").content == hash_path(tmp_path / "three").content
    assert len(hash_path(tmp_path / "three").files) == 3


def test_a_folder_and_its_single_file_have_the_same_networks(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sdxl())
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_mid_block_attentions_0_proj_in": b.lora((16, 16))})
    fields = {"loras": [], "output": {"path": "folder", "layout": "diffusers", "dtype": "float16"}}
    folder = b.run(b.recipe(tmp_path, **fields)).path
    one, other = hash_path(tmp_path / "base.safetensors"), hash_path(folder)
    assert {each.layout for each in one.networks} != {each.layout for each in other.networks}
    assert networks(tmp_path / "base.safetensors") == networks(folder)
    assert {"unet", "text_encoder", "text_encoder_2", "vae"} == networks(folder).keys()
    assert one.content != other.content


# -- The command -----------------------------------------------------------------------------------------


def test_the_command_prints_what_it_found(base: Path) -> None:
    ended = CliRunner().invoke(lorabake, ["hash", str(base), "--quiet"])
    assert ended.exit_code == 0
    found = hash_path(base)
    lines = dict(line.split(None, 1) for line in ended.stdout.splitlines() if not line.startswith(" "))
    assert lines["sha256"] == found.sha256
    assert lines["autov3"] == found.files[0].autov3
    assert lines["content"] == found.content
    assert lines["networks"] == f"unet {found.networks[0].sha256}"


def test_its_json_follows_its_schema(base: Path, tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "folder")
    ended = CliRunner().invoke(lorabake, ["hash", str(base), str(tmp_path / "folder"), "--json", "--quiet"])
    told = check(json.loads(ended.stdout))
    assert [each["path"] for each in told["paths"]] == [str(base), str(tmp_path / "folder")]
    assert told["paths"][0]["files"][0]["autov2"] == b.sha256(base)[:10].upper()


def test_a_missing_file_is_named() -> None:
    ended = CliRunner().invoke(lorabake, ["hash", "nowhere.safetensors"])
    assert isinstance(ended.exception, FileError)
    assert "nowhere.safetensors" in str(ended.exception)
