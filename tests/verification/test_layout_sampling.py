"""The third stage with converted bakes: a checkpoint's networks are built of its own names, by libraries' code."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from lorabake import VerifyOptions, verify
from lorabake.verification.findings import SampleOptions, Status, Verification
from lorabake.verification.samples import NEEDED
from tests import builders as b
from tests.verification.test_pipelines import write_lora

if any(find_spec(name) is None for name in NEEDED):
    pytest.skip("lorabake[verify] is missing", allow_module_level=True)

from tests import small_pipelines

SAMPLES = VerifyOptions(stages=["samples"], samples=SampleOptions(steps=1, size=64))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Keep each family's folder, single file and LoRA."""
    return {}


def base_of(family: str, made: dict[str, Path], factory: pytest.TempPathFactory) -> Path:
    if family not in made:
        root = factory.mktemp(family)
        pipeline = small_pipelines.save(root / "folder", family)
        component = "unet" if hasattr(pipeline, "unet") else "transformer"
        write_lora(root / "lora.safetensors", getattr(pipeline, component), component, most=12)
        b.run(b.recipe(root, base="folder", loras=[], output={"path": "file.safetensors", "layout": "single"}))
        made[family] = root
    return made[family]


def look(root: Path, base: str, strength: float = 1.0, *, bake: bool = True) -> Verification:
    layout, path = ("single", "out.safetensors") if base == "folder" else ("diffusers", "out")
    said = {"prompts": ["a red fox"], **({} if base == "folder" else {"config": "folder", "tokenizers": "folder"})}
    recipe = b.recipe(
        root,
        base=base,
        loras=[{"path": "lora.safetensors", "strength": strength}],
        output={"path": path, "layout": layout},
        verify=said,
    )
    if bake:
        b.run(recipe, overwrite=True)
    return verify(recipe, options=SAMPLES)


@pytest.mark.parametrize("base", ["folder", "file.safetensors"])
@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_a_converted_bake_draws_what_its_recipe_draws(
    family: str, base: str, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = base_of(family, made, tmp_path_factory)
    right = look(root, base)
    assert right.status is Status.PASS, right.findings
    assert right.samples is not None
    likeness = right.samples.pictures[0].likeness
    assert max(likeness["floor"].latents, likeness["baked"].latents) < likeness["base"].latents / 10
    wrong = look(root, base, strength=0.3, bake=False)
    assert wrong.status is Status.FAIL, wrong.findings
