"""The demo model does what its card says: prompts work, each LoRA shows, and a bake draws what the run time draws."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before an oracle library is imported
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

import lorabake  # noqa: E402
from demo.drawings import (  # noqa: E402
    CHARACTER,
    COLOURS,
    PLACES,
    SHAPES,
    Picture,
    Scene,
    colour_of,
    detail_of,
    draw,
    place_of,
    random_scene,
    shape_of,
)
from lorabake.verification.samples.tokenizers import clip_tokenizer  # noqa: E402

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # a second LoRA
    *(
        pytest.mark.filterwarnings(rf"ignore::{category}:{module}(\..*)?")
        for category in ("DeprecationWarning", "FutureWarning")
        for module in ("peft", "diffusers", "transformers", "huggingface_hub", "accelerate")
    ),
]

SHIPPED = Path(__file__).resolve().parent.parent / "recipes" / "demo"
BASE = SHIPPED / "shapes.safetensors"
BOTH = {"neon": 1.0, "blorp": 1.0}

Pipeline = Any
Pictures = list[Picture]


def load(path: Path) -> Pipeline:
    """Load a single file by diffusers alone, with the shipped configuration, for float32."""
    words = clip_tokenizer()
    words.model_max_length = 77
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(
        str(path),
        config=str(SHIPPED / "config"),
        tokenizer=words,
        safety_checker=None,
        torch_dtype=torch.float32,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def add_loras(pipeline: Pipeline, strengths: dict[str, float]) -> Pipeline:
    """Load the LoRAs at run time: neon by diffusers, blorp by PEFT."""
    if "neon" in strengths:
        pipeline.load_lora_weights(str(SHIPPED), weight_name="neon.safetensors", adapter_name="neon")
    if "blorp" in strengths:
        config = peft.LoraConfig.from_pretrained(str(SHIPPED / "blorp"))
        weights = load_file(SHIPPED / "blorp" / "adapter_model.safetensors")
        named = {key.removeprefix("base_model.model."): value.float() for key, value in weights.items()}
        pipeline.unet.add_adapter(config, "blorp")
        assert not peft.set_peft_model_state_dict(pipeline.unet, named, "blorp").unexpected_keys
    pipeline.unet.set_adapters([*strengths], [*strengths.values()])
    return pipeline


def make(pipeline: Pipeline, prompts: Sequence[str], *, output: str = "np", seed: int = 0) -> Any:
    """Sample one picture a prompt, each from a seed of its own."""
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    settings = {"num_inference_steps": 20, "guidance_scale": 4.0, "height": 64, "width": 64}
    return pipeline([*prompts], generator=generators, output_type=output, **settings).images


def bake(folder: Path, strengths: dict[str, float]) -> Path:
    lines = ["version: 1", f"base: {BASE}", "loras:"]
    for name, strength in strengths.items():
        file = {"neon": "neon.safetensors", "blorp": "blorp"}[name]
        lines.append(f"  - {{path: {SHIPPED / file}, strength: {strength}}}")
    recipe = folder / "recipe.yaml"
    recipe.write_text("\n".join([*lines, "output: {path: baked.safetensors}"]), encoding="utf-8")
    return lorabake.bake(lorabake.load_recipe(recipe), lorabake.RunOptions(fsync=False)).path


def light(pictures: Pictures) -> float:
    """Return the mean brightness: 0.9 on paper, 0.1 in neon."""
    return float(np.mean(pictures))


def large(shape: str, *, neon: bool = False) -> list[str]:
    """Describe a large shape in every colour at two places."""
    return [Scene(shape, colour, "large", place, neon).caption for colour in COLOURS for place in [*PLACES][:2]]


def share_with_a_face(pictures: Pictures) -> float:
    return float(np.mean([detail_of(picture) > 0.15 for picture in pictures]))


# -- the judges ---------------------------------------------------------------------------------------------


def test_the_judges_are_right_about_drawings() -> None:
    generator = np.random.default_rng(1)
    scenes = [random_scene(generator) for _ in range(150)]
    right = [judged(draw(scene, generator), scene) for scene in scenes]
    assert np.mean(right) >= 0.98
    for neon in (False, True):
        for shape, due in (("circle", 0.0), ("square", 0.0), (CHARACTER, 1.0)):
            drawn = [
                draw(Scene(shape, colour, "large", place, neon), generator) for colour in COLOURS for place in PLACES
            ]
            assert share_with_a_face(drawn) == due


def judged(picture: Picture, scene: Scene) -> bool:
    """Tell whether colour, shape and place are as the prompt says."""
    return (colour_of(picture), shape_of(picture), place_of(picture)) == (scene.colour, scene.shape, scene.place)


# -- the base -----------------------------------------------------------------------------------------------


def test_everything_is_small_and_half_precise() -> None:
    weights = [BASE, SHIPPED / "neon.safetensors", SHIPPED / "blorp" / "adapter_model.safetensors"]
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 12_000_000
    for path in weights:
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}


def test_the_base_follows_prompts() -> None:
    generator = np.random.default_rng(5)
    scenes = [random_scene(generator) for _ in range(100)]
    assert {scene.shape for scene in scenes} == {*SHAPES}
    pictures = make(load(BASE), [scene.caption for scene in scenes])
    right = [judged(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    assert sum(right) >= 90


# -- the LoRAs, baked ---------------------------------------------------------------------------------------


def test_the_style_shows_by_its_strength(tmp_path: Path) -> None:
    prompts = large("circle", neon=True)
    by_strength = {0.0: light(make(load(BASE), prompts))}
    for strength in (0.5, 1.0):
        folder = tmp_path / str(strength)
        folder.mkdir()
        by_strength[strength] = light(make(load(bake(folder, {"neon": strength})), prompts))
    assert by_strength[0.0] > 0.8
    assert by_strength[1.0] < 0.2
    assert by_strength[1.0] + 0.1 < by_strength[0.5] < by_strength[0.0] - 0.1


def test_the_character_shows(tmp_path: Path) -> None:
    assert share_with_a_face(make(load(BASE), large(CHARACTER))) <= 0.1
    baked = load(bake(tmp_path, {"blorp": 1.0}))
    assert share_with_a_face(make(baked, large(CHARACTER))) >= 0.8
    assert share_with_a_face(make(baked, large("circle"))) <= 0.6  # it leaks into other shapes, as its card says


def test_the_stack_shows_both_and_draws_what_the_run_time_draws(tmp_path: Path) -> None:
    prompts = large(CHARACTER, neon=True)
    baked = load(bake(tmp_path, BOTH))
    pictures = make(baked, prompts)
    assert light(pictures) < 0.25
    assert share_with_a_face(pictures) >= 0.8

    runtime = add_loras(load(BASE), BOTH)
    wanted = make(runtime, prompts, output="latent")
    runtime.unet.fuse_lora(adapter_names=[*BOTH])
    runtime.unet.unload_lora()
    runtime.unet.half().float()
    floor = apart(make(runtime, prompts, output="latent"), wanted)
    assert apart(make(load(BASE), prompts, output="latent"), wanted) > 20 * floor
    assert apart(make(baked, prompts, output="latent"), wanted) < 1.5 * floor


def apart(latents: Any, wanted: Any) -> float:
    """Return the relative distance, L2 over all latents."""
    return float((latents - wanted).norm() / wanted.norm())
