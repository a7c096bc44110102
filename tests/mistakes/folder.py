"""Make the folder that all mistakes are made in: a base, LoRAs, and files that are something else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from lorabake.artifacts.statement import write_statement
from lorabake.baking import bake, plan
from lorabake.options import RunOptions
from lorabake.recipe import load_recipe
from tests import builders as b
from tests.builders import Q, W


def fill(folder: Path) -> None:
    """Write the files; their names say what they are."""
    b.save(folder / "base.safetensors", b.sd1(extras=False))
    b.save(folder / "sdxl.safetensors", b.sdxl())
    b.sd1_lora(folder / "lora.safetensors")
    b.save(folder / "vae.safetensors", b.vae_file("ldm", seed=3))
    b.llama(folder / "llama")
    b.sd1_folder(folder / "diffusers")
    b.peft(folder / "adapter", {"model.layers.0.self_attn.q_proj": b.lora((8, 8), rank=4)}, r=4, lora_alpha=8)
    _loras_that_do_not_fit(folder)
    _other_files(folder)
    (folder / "empty-folder").mkdir()
    (folder / "old.safetensors").write_bytes((folder / "vae.safetensors").read_bytes())
    bake(load_recipe(b.recipe(folder, output={"path": "baked.safetensors"})), RunOptions(device="cpu", workers=1))
    (folder / "recipe.yaml").rename(folder / "good.yaml")
    _statements(folder)


def _statements(folder: Path) -> None:
    """Write a file in a statement's place, and a statement that claims another strength."""
    (folder / "taken.intoto.json").write_text("{}")
    (folder / "taken.safetensors").write_bytes((folder / "baked.safetensors").read_bytes())
    (folder / "taken.md").write_text("My notes.\n")
    (folder / "claimed.safetensors").write_bytes((folder / "baked.safetensors").read_bytes())
    place = write_statement(plan(folder / "good.yaml"), folder / "claimed.safetensors")
    place.write_text(place.read_text().replace('"strength": 1.0', '"strength": 0.5'))


def _loras_that_do_not_fit(folder: Path) -> None:
    linear = b.lora((W, W))
    b.kohya(folder / "lora-unknown-module.safetensors", {"lora_unet_no_such_module": linear})
    b.kohya(folder / "lora-wide.safetensors", {b.unet_lora(Q): b.lora((2 * W, W))})
    key = b.unet_lora(Q)
    b.save(folder / "lora-without-up.safetensors", {f"{key}.lora_down.weight": linear["down"]})
    b.kohya(folder / "lora-nan.safetensors", {key: {**linear, "up": linear["up"] * float("nan")}})
    b.kohya(folder / "lora-huge.safetensors", {key: {**linear, "up": linear["up"] * 1e30}})
    b.peft(folder / "adapter-llm", {"model.layers.7.self_attn.q_proj": b.lora((8, 8), rank=4)}, r=4)


def _other_files(folder: Path) -> None:
    (folder / "page.safetensors").write_text("<!DOCTYPE html><html><body>Log in</body></html>")
    (folder / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 4265380512\n"
    )
    (folder / "zero-bytes.safetensors").write_bytes(b"")
    (folder / "half.safetensors").write_bytes((folder / "base.safetensors").read_bytes())
    os.truncate(folder / "half.safetensors", 5000)
    (folder / "notes.txt").write_text("Remember the milk.\n")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    torch.save({"a": torch.ones(1)}, folder / "renamed.safetensors")
    b.save(folder / "embedding.safetensors", {"emb_params": torch.ones(2, W)})
    (folder / "adapter-without-weights").mkdir()
    (folder / "adapter-without-weights" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
