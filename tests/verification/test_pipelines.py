"""The third stage with diffusers' own pipelines: tiny random ones of every family, without a network."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lorabake import RunOptions, bake, load_recipe
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, SampleOptions, Status, Verification
from lorabake.verification.sampling import NEEDED
from tests import pipelines

pytestmark = pytest.mark.skipif(any(find_spec(name) is None for name in NEEDED), reason="lorabake[verify] is missing")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("sampling must not ask a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep each family's pipeline for all tests of this file."""
    return tmp_path_factory.mktemp("pipelines")


def pipeline(folders: Path, family: str) -> Any:
    return pipelines.save(folders / family, family)


def write_lora(path: Path, network: Any, component: str = "transformer", most: int = 4) -> None:
    """Write a LoRA on some of a network's attention layers, as diffusers does."""
    chosen = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith((".to_q", ".to_v", ".to_out.0", ".to_query"))
    ]
    assert chosen
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, module in chosen[:most]:
        out, columns = module.weight.shape
        tensors[f"{component}.{name}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * 0.3
        tensors[f"{component}.{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator) * 0.3
    save_file(tensors, path)


def recipe(folder: Path, base: Path, **said: object) -> Path:
    content = {
        "version": 1,
        "base": str(base),
        "loras": [{"path": "lora.safetensors", "strength": said.pop("strength", 0.8)}],
        "output": {"path": "out" if base.is_dir() else "out.safetensors"},
        "verify": {"prompts": ["a red fox"], "steps": 2, "size": 32, **said},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(path: Path) -> Path:
    return bake(load_recipe(path), RunOptions(fsync=False, overwrite=True)).path


def look(path: Path, **options: object) -> Verification:
    chosen = SampleOptions(**options)  # type: ignore[arg-type]
    return verify(load_recipe(path), None, VerifyOptions(stages=("samples",), samples=chosen))


def found(verification: Verification, check: str) -> Finding:
    return next(each for each in verification.findings if each.check == f"samples.{check}")


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_every_family_draws(folders: Path, tmp_path: Path, family: str) -> None:
    made = pipeline(folders, family)
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    path = recipe(tmp_path, folders / family)
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    samples = verification.samples
    assert samples is not None
    assert samples.reference == pipelines.REFERENCES.get(family, "diffusers"), verification.findings
    likeness = samples.pictures[0].likeness
    assert likeness["baked"].latents <= 2 * likeness["floor"].latents + 1e-6 < likeness["base"].latents / 10

    run(recipe(tmp_path, folders / family, strength=0.4))
    assert found(look(recipe(tmp_path, folders / family)), "likeness").status is Status.FAIL
