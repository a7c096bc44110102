"""Pipes, devices and files without end, in place of every small file that lorabake reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from tests import builders as b
from tests.torture.conftest import Tally
from tests.torture.surroundings import command

GIB = 1 << 30


def huge(path: Path) -> None:
    """Write a file that takes no room and is larger than memory should be."""
    with path.open("wb") as stream:
        stream.write(b"{")
        stream.truncate(64 * GIB)


INSTEAD: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/tty": lambda path: path.symlink_to("/dev/tty"),
    "a huge file": huge,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a deep list": lambda path: path.write_text("[" * 100_000),
    "deep objects": lambda path: path.write_text('{"a":' * 5_000 + "1" + "}" * 5_000),
    "lists in an object": lambda path: path.write_text('{"a":' + "[" * 500 + "]" * 500 + "}"),
    "a number of many digits": lambda path: path.write_text('{"r": ' + "9" * 100_000 + "}"),
    "half a surrogate pair": lambda path: path.write_text('{"a": "\\ud800"}'),
    "no UTF-8": lambda path: path.write_bytes(b'{"a": "\xff"}'),
    "aliases that multiply": lambda path: path.write_text(
        "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])
    ),
    "merges that multiply": lambda path: path.write_text(
        "\n".join(
            ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30))]
        )
    ),
}


def pipeline(folder: Path) -> None:
    b.sd1_folder(folder / "base")
    b.sd1_lora(folder / "lora.safetensors")
    b.recipe(folder, base="base", output={"path": "out"})


def transformer(folder: Path) -> None:
    b.llama(folder / "base", shards=2)
    (folder / "base" / "quantize_config.json").write_text("{}")
    b.peft(folder / "lora", {"model.layers.0.self_attn.q_proj": b.lora((8, 8))})
    b.recipe(folder, base="base", loras=["lora"], output={"path": "out"})


def single(folder: Path) -> None:
    made = b.llama(folder / "made")
    b.save(folder / "base.safetensors", made)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    lora = {
        "transformer.h.0.attn.proj.lora_A": torch.ones(2, 8),
        "transformer.h.0.attn.proj.lora_B": torch.ones(8, 2),
    }
    (folder / "lora").mkdir()
    torch.save(lora, folder / "lora" / "lit_model.pth.lora")
    (folder / "lora" / "hyperparameters.yaml").write_text("{lora_r: 2, lora_alpha: 4, lora_query: true}")
    (folder / "lora" / "model_config.yaml").write_text("{n_head: 2, n_query_groups: 1}")
    b.recipe(folder, base="base.safetensors", loras=["lora"])


WORLDS: dict[Callable[[Path], None], tuple[str, ...]] = {
    pipeline: (
        "base/model_index.json", "base/unet/config.json", "base/tokenizer/vocab.json", "recipe.yaml",
        "base/unet/diffusion_pytorch_model.safetensors", "lora.safetensors",
    ),
    transformer: (
        "base/config.json", "base/model.safetensors.index.json", "base/quantize_config.json",
        "lora/adapter_config.json", "lora/adapter_model.safetensors", "base/model-00001-of-00002.safetensors",
    ),
    single: (
        "config.json", "lora/hyperparameters.yaml", "lora/model_config.yaml", "lora/lit_model.pth.lora",
        "base.safetensors",
    ),
}  # fmt: skip
"""What is made, and the files of it that are replaced one after the other."""


def test_files_that_never_end(
    tally: Callable[[str, str], Tally], effort: Callable[[int, int], int], tmp_path: Path
) -> None:
    count = tally(
        "pipes, devices, endless and deeply nested files in place of small ones",
        "one clear error within seconds, or the file is not read; nothing is written",
    )
    step = effort(7, 1)
    tried = 0
    for number, (make, names) in enumerate(WORLDS.items()):
        world = tmp_path / str(number)
        make(world)
        sound = command(world, "plan", "recipe.yaml")
        assert sound.code == 0, sound.err
        for name in names:
            place = world / name
            place.rename(tmp_path / "kept")
            for what, put in INSTEAD.items():
                tried += 1
                if tried % step:
                    continue
                put(place)
                for verb, target in (("plan", "recipe.yaml"), ("inspect", name)):
                    outcome = command(world, verb, target, seconds=10)
                    is_told = outcome.code == 2 and outcome.err.startswith(("error: ", "Usage: "))
                    is_read = outcome.code == 0 and "Traceback" not in outcome.err
                    count.hold(is_told or is_read, f"{verb} {name}: {what}: {outcome.code} {outcome.err[-300:]}")
                place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()
            (tmp_path / "kept").rename(place)
        assert not (world / "out").exists()
        assert not (world / "out.partial").exists()
