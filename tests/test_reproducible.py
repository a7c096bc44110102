"""Same recipe, same inputs: same bytes. And what those bytes say of themselves is true."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lorabake import __version__
from lorabake.errors import LorabakeError
from lorabake.recipe import load_recipe, parse_recipe
from tests import builders as b


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a base with hashes in its metadata, and two LoRAs that share tensors."""
    b.save(
        tmp_path / "base.safetensors",
        b.sd1(ema=True),
        metadata={
            "modelspec.title": "mine",
            "modelspec.hash_sha256": "0x" + "ab" * 32,
            "sshs_model_hash": "cd" * 32,
            "sshs_legacy_hash": "01234567",
            "sshs_other": "stale",
            "zz": "last",
            "ss_output_name": "first",
        },
    )
    b.sd1_lora(tmp_path / "lora.safetensors", rank=3)
    b.sd1_lora(tmp_path / "second.safetensors", seed=40, rank=5, dora="row")
    return tmp_path


def both(folder: Path, **fields: object) -> Path:
    loras = [{"path": "lora.safetensors", "strength": 0.7}, {"path": "second.safetensors", "strength": 0.4}]
    return b.recipe(folder, **{"loras": loras, **fields})


# -- The same bytes --------------------------------------------------------------------------------------


def test_workers_and_runs_do_not_matter(folder: Path) -> None:
    recipe = both(folder)
    digests = {b.sha256(b.run(recipe, workers=workers).path) for workers in (1, 2, 4, 4, 1)}
    assert len(digests) == 1


def test_a_folders_bytes_neither(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    b.sd1_lora(tmp_path / "lora.safetensors")
    trees = [
        b.tree(
            b.run(b.recipe(tmp_path, base="base", output={"path": f"{n}/out", "shard_size": "10KB"}), workers=n).path
        )
        for n in (1, 4)
    ]
    assert trees[0] == trees[1]
    assert any(name.endswith(".index.json") for name in trees[0])


@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_many_tiles_at_once_neither(folder: Path, monkeypatch: pytest.MonkeyPatch, compute: str) -> None:
    monkeypatch.setattr("lorabake.execution.tiles.TILE_VALUES", 16)
    recipe = both(folder, compute_dtype=compute)
    assert len({b.sha256(b.run(recipe, workers=workers).path) for workers in (1, 3, 8)}) == 1


def test_place_time_and_process_do_not_matter(folder: Path, tmp_path: Path) -> None:
    recipe = both(folder)
    here = b.sha256(b.run(recipe).path)
    elsewhere = tmp_path / "elsewhere" / "deeper"
    elsewhere.mkdir(parents=True)
    for name in ("base.safetensors", "lora.safetensors", "second.safetensors", "recipe.yaml"):
        os.link(folder / name, elsewhere / name)
    os.utime(folder / "lora.safetensors", (time.time() - 9e6,) * 2)
    commands = [
        (elsewhere, ["recipe.yaml"]),
        (elsewhere.parent, ["deeper/recipe.yaml"]),
        (Path("/"), [str(elsewhere / "recipe.yaml")]),
        (elsewhere.parent, [str(elsewhere / "recipe.yaml"), "--output", "out.safetensors"]),
    ]
    for cwd, arguments in commands:
        environment = dict(os.environ, PYTHONHASHSEED=str(len(arguments)))
        subprocess.run(
            [sys.executable, "-m", "lorabake", "bake", *arguments, "--overwrite", "--quiet"],
            cwd=cwd,
            check=True,
            env=environment,
        )
        name = elsewhere.parent / "out.safetensors" if "--output" in arguments else elsewhere / "out.safetensors"
        assert b.sha256(name) == here
        name.unlink()


def test_the_spelling_of_a_recipe_does_not_matter(folder: Path) -> None:
    short = folder / "short.yaml"
    short.write_text(
        "{loras: [lora.safetensors], version: 1, output: {path: a/out.safetensors}, base: base.safetensors}"
    )
    long = folder / "long.yaml"
    long.write_text(
        "# a remark\nversion: 1\nbase: {path: ./base.safetensors}\n"
        f"loras:\n- {{path: {folder}/lora.safetensors, strength: 1, blocks: {{}}}}\n"
        "compute_dtype: float32\noutput: {path: b/out.safetensors, dtype: keep, hash: true}\n"
        "verify: {prompts: [a knight]}\n"
    )
    assert b.sha256(b.run(short).path) == b.sha256(b.run(long).path)


# -- What the file says ----------------------------------------------------------------------------------


def test_metadata_is_sorted_and_without_times_or_absolute_paths(folder: Path) -> None:
    recipe = both(
        folder,
        base=str(folder / "base.safetensors"),
        loras=[str(folder / "lora.safetensors"), "./second.safetensors"],
        output={"path": str(folder / "out.safetensors")},
    )
    path = b.run(recipe).path
    _, metadata, _ = b.header(path)
    assert list(metadata) == sorted(metadata)
    text = json.dumps(metadata)
    assert str(folder) not in text
    assert "out.safetensors" not in text
    assert not re.search(r"20[0-9]{2}-[01][0-9]-", text)
    assert not re.search(r"\b1[6-9][0-9]{8}\b", text)
    assert metadata["lorabake.version"] == __version__
    assert metadata["modelspec.title"] == "out"
    assert metadata["zz"] == "last"


def test_hashes_of_the_base_are_replaced_by_right_ones(folder: Path) -> None:
    result = b.run(both(folder))
    raw = result.path.read_bytes()
    _, metadata, data = b.header(result.path)
    digest = hashlib.sha256(data).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + digest
    assert metadata["sshs_model_hash"] == digest
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(raw[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    assert "sshs_other" not in metadata
    assert result.data_sha256 == {"out.safetensors": digest}


def test_the_legacy_hash_is_taken_at_one_mebibyte(tmp_path: Path) -> None:
    base = b.sd1() | {"padding": torch.arange(300_000, dtype=torch.int32)}
    b.save(tmp_path / "base.safetensors", base, metadata={"sshs_legacy_hash": "00000000"})
    b.sd1_lora(tmp_path / "lora.safetensors")
    path = b.bake_sd1(tmp_path)
    block = path.read_bytes()[0x100000:0x110000]
    assert len(block) == 0x10000
    assert b.header(path)[1]["sshs_legacy_hash"] == hashlib.sha256(block).hexdigest()[:8]


def test_without_hash_there_is_none(folder: Path) -> None:
    result = b.run(both(folder, output={"hash": False}))
    metadata = b.header(result.path)[1]
    assert not [key for key in metadata if key.startswith("sshs_") or key == "modelspec.hash_sha256"]
    assert result.data_sha256 == {}
    assert b.header(result.path)[2] == b.header(b.run(both(folder)).path)[2]


def test_every_shard_states_its_own_hash(tmp_path: Path) -> None:
    b.llama(tmp_path / "base", shards=3)
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    out = b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})).path
    for file in out.glob("*.safetensors"):
        _, metadata, data = b.header(file)
        assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
        assert metadata["format"] == "pt"


def test_inputs_are_identified(folder: Path) -> None:
    tensors = load_file(folder / "second.safetensors")
    torch.save(tensors, folder / "second.pt")
    b.save(folder / "vae.safetensors", b.vae_file("ldm", seed=4))
    loras = ["lora.safetensors", "second.pt"]
    result = b.run(both(folder, loras=loras, vae="vae.safetensors"))
    inputs = json.loads(b.header(result.path)[1]["lorabake.inputs"])
    for entry, name in (
        (inputs["loras"][0], loras[0]),
        (inputs["loras"][1], loras[1]),
        (inputs["vae"], "vae.safetensors"),
    ):
        assert entry == {"name": name, "size": (folder / name).stat().st_size, "sha256": b.sha256(folder / name)}
    raw = (folder / "base.safetensors").read_bytes()
    head = raw[: 8 + int.from_bytes(raw[:8], "little")]
    assert inputs["base"] == {
        "name": "base.safetensors",
        "size": len(raw),
        "header_sha256": hashlib.sha256(head).hexdigest(),
    }


def test_files_of_a_peft_folder_are_identified(tmp_path: Path) -> None:
    b.llama(tmp_path / "base", shards=2)
    b.peft(tmp_path / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    out = b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})).path
    inputs = json.loads(b.header(next(out.glob("*.safetensors")))[1]["lorabake.inputs"])
    (entry,) = inputs["loras"]
    assert entry["path"] == "lora"
    digests = {each["name"]: each["sha256"] for each in entry["files"]}
    assert digests["adapter_model.safetensors"] == b.sha256(tmp_path / "lora" / "adapter_model.safetensors")
    assert {each["name"] for each in inputs["base"]["files"]} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }


def test_another_scale_in_the_config_gives_another_file(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.gpt2())
    heads = []
    for alpha in (2, 4):
        b.peft(tmp_path / "lora", {"transformer.h.0.attn.c_attn": b.lora((24, 8))}, lora_alpha=alpha)
        heads.append(b.header(b.bake_sd1(tmp_path, loras=["lora"], output={"hash": False}))[1]["lorabake.inputs"])
    assert heads[0] != heads[1]


def test_the_recipe_in_the_file_is_the_recipe(folder: Path) -> None:
    recipe = both(folder, compute_dtype="float64", output={"dtype": {"vae": "float32"}})
    path = b.run(recipe).path
    stored = json.loads(b.header(path)[1]["lorabake.recipe"])
    assert stored == load_recipe(recipe).normal_form()
    for lora in stored["loras"]:
        lora["blocks"] = dict(lora["blocks"])
    again = parse_recipe(json.dumps(stored | {"output": stored["output"] | {"path": "x.safetensors"}}), folder)
    assert again.normal_form() == load_recipe(recipe).normal_form()


def test_the_safetensors_library_loads_it(folder: Path) -> None:
    path = b.run(both(folder, output={"dtype": "bfloat16"})).path
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["lorabake.version"] == __version__
        assert set(file.keys()) == b.header(path)[0].keys()
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            assert torch.equal(file.get_tensor(key), load_file(path)[key])


def test_baking_a_baked_file_again_replaces_what_it_says(folder: Path) -> None:
    first = b.run(both(folder, output={"path": "first.safetensors"})).path
    second = b.run(both(folder, base="first.safetensors")).path
    metadata = b.header(second)[1]
    assert json.loads(metadata["lorabake.recipe"])["base"]["path"] == "first.safetensors"
    assert metadata["sshs_model_hash"] == hashlib.sha256(b.header(second)[2]).hexdigest()
    assert metadata["sshs_model_hash"] != b.header(first)[1]["sshs_model_hash"]


# -- Stated digests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["base", "lora", "vae", "pickle"])
def test_stated_digests_are_checked(folder: Path, which: str) -> None:
    b.save(folder / "vae.safetensors", b.vae_file("ldm", seed=4))
    torch.save(load_file(folder / "lora.safetensors"), folder / "lora.pt")
    names = {"base": "base.safetensors", "lora": "lora.safetensors", "vae": "vae.safetensors", "pickle": "lora.pt"}
    for right in (True, False):
        real = b.sha256(folder / names[which])
        stated = real.upper() if right else "0" * 64
        sources: dict[str, object] = {key: names[key] for key in ("base", "lora", "vae")}
        sources["lora" if which == "pickle" else which] = {"path": names[which], "sha256": stated}
        recipe = b.recipe(
            folder,
            base=sources["base"],
            loras=[sources["lora"]],
            vae=sources["vae"],
            output={"path": f"{right}.safetensors"},
        )
        if right:
            path = b.run(recipe).path
            assert real in b.header(path)[1]["lorabake.inputs"]
        else:
            with pytest.raises(LorabakeError, match=f"{names[which]}: its SHA-256 is {real}"):
                b.run(recipe)
            assert not list(folder.glob("False*"))


def test_a_digest_that_looks_like_a_place_holder_stays(folder: Path) -> None:
    """Digests are filled in by replacing zeros; a recipe's own zeros are none of them."""
    name = "0" * 64 + ".safetensors"
    os.link(folder / "lora.safetensors", folder / name)
    path = b.run(both(folder, loras=[name])).path
    entry = json.loads(b.header(path)[1]["lorabake.inputs"])["loras"][0]
    assert entry["name"] == name
    assert entry["sha256"] == b.sha256(folder / name)


FRESH = """
import os, sys
import torch, lorabake, lorabake.execution.worker
from safetensors.torch import load_file
recipe, times = lorabake.load_recipe(sys.argv[1]), int(sys.argv[2])
options = lorabake.RunOptions(workers=2, fsync=False, overwrite=True)
out = recipe.locate(recipe.output.path)
first = out.with_name("first.safetensors")
for number in range(times):
    child = os.fork()
    if not child:
        try:
            lorabake.bake(recipe, options)
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    assert os.waitpid(child, 0)[1] == 0
    if not number:
        out.rename(first)
    elif out.read_bytes() != first.read_bytes():
        due, got = load_file(first), load_file(out)
        for key in due:
            if not torch.equal(due[key], got[key]):
                off = (due[key].double() - got[key].double()).abs()
                print(number, key, tuple(off.shape), "largest", float(off.max()), "at", off.argmax().item(),
                      "in", int((off > 0).any(-1).sum()), "rows")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_first_bake_of_a_process_is_as_good_as_any(folder: Path) -> None:
    """MKL's first calls raced: one fresh process in a hundred computed a tensor with less than float32."""
    command = [sys.executable, "-c", FRESH, str(both(folder)), "150"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "", "a fresh process wrote other bytes"
