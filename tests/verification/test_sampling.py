"""The third stage, on the demo model and on a small language model, without a network."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lorabake import BatchOptions, RunOptions, bake, bake_all, load_recipe, load_recipes
from lorabake.architectures.sd1 import SD1
from lorabake.cli import lorabake as cli
from lorabake.configs import Told, shipped, sizes_of
from lorabake.errors import RecipeError, SurroundingsError
from lorabake.keymap.expansion import KeyMap
from lorabake.recipe import Recipe
from lorabake.report import portable
from lorabake.sources.family import identify
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, SampleOptions, Status, Verification
from lorabake.verification.samples import NEEDED, texts
from lorabake.verification.samples.tokenizers import clip_tokenizer as tokenizer
from lorabake.verification.samples.unets import UNets
from lorabake.verifying import verify_all
from tests import builders as b
from tests.documents import checked
from tests.tables import load_table

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes" / "demo"
needs_extra = pytest.mark.skipif(
    any(find_spec(name) is None for name in NEEDED), reason="lorabake[verify] is missing"
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("sampling must not ask a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def recipe(folder: Path, loras: list[object], **verify: object) -> Path:
    said = {"prompts": ["a large red circle on the left"], "config": str(DEMO / "config"), "size": 64, "steps": 2}
    content = {
        "version": 1,
        "base": str(DEMO / "shapes.safetensors"),
        "loras": loras,
        "output": {"path": "out.safetensors"},
        "verify": {**said, **verify},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


NEON = {"path": str(DEMO / "neon.safetensors"), "strength": 0.9}
BLORP = {"path": str(DEMO / "blorp")}


def look(path: Path, **options: object) -> Verification:
    chosen = SampleOptions(**options)  # type: ignore[arg-type]
    return checked(verify(load_recipe(path), None, VerifyOptions(stages=("samples",), samples=chosen)))


def found(verification: Verification, check: str) -> Finding:
    return next(each for each in verification.findings if each.check == f"samples.{check}")


def run(path: Path) -> Path:
    return bake(load_recipe(path), RunOptions(fsync=False, overwrite=True)).path


# -- pictures -----------------------------------------------------------------------------------------------


@needs_extra
def test_a_right_bake_is_at_the_floor_beside_other_programs(tmp_path: Path) -> None:
    path = recipe(tmp_path, [NEON, BLORP])
    run(path)
    verification = look(path, strengths=(0.0, 1.0))
    assert verification.status is Status.PASS, verification.findings
    samples = verification.samples
    assert samples is not None
    assert samples.reference == "PEFT and diffusers"
    (picture,) = samples.pictures
    likeness = picture.likeness
    assert likeness["baked"].latents < 2 * likeness["floor"].latents < likeness["base"].latents / 10
    (strip,) = samples.sweep
    assert (strip.pictures[0] == picture.pictures["base"]).all()
    assert (strip.pictures[1] == picture.pictures["runtime"]).all()
    assert [each.subject for each in verification.findings if each.check == "samples.effect"] == [
        NEON["path"],
        BLORP["path"],
    ]


@needs_extra
def test_a_lora_left_out_of_the_bake_is_a_difference(tmp_path: Path) -> None:
    path = recipe(tmp_path, [NEON])
    run(path)
    path = recipe(tmp_path, [NEON, BLORP])
    fault = found(look(path), "likeness")
    assert fault.status is Status.FAIL
    assert "not what base and LoRAs make at run time" in fault.note


@needs_extra
@pytest.mark.parametrize("second", [NEON, BLORP], ids=["diffusers", "peft"])
def test_every_lora_is_active_at_run_time(tmp_path: Path, second: object) -> None:
    """Each library leaves only the LoRA that it loaded last active; then the first would seem to have no effect."""
    tensors = load_file(DEMO / "neon.safetensors")
    save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / "first.safetensors")
    path = recipe(tmp_path, ["first.safetensors", second])
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    likeness = verification.samples.pictures[0].likeness  # type: ignore[union-attr]
    assert likeness["floor"].latents < likeness["base"].latents / 10


@needs_extra
def test_nan_is_a_difference(tmp_path: Path) -> None:
    path = recipe(tmp_path, [NEON])
    out = run(path)
    tensors = load_file(out)
    key = "model.diffusion_model.out.2.bias"
    tensors[key][0] = float("nan")
    save_file(tensors, out)
    assert found(look(path), "finite").status is Status.FAIL


def test_a_checkpoint_that_lacks_tensors_is_not_sampled(tmp_path: Path) -> None:
    path = recipe(tmp_path, [NEON])
    out = run(path)
    tensors = load_file(out)
    tensors["model.diffusion_model.out.2.weight"] = tensors["model.diffusion_model.out.2.weight"][:, :8].clone()
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, out)
    verification = look(path)
    assert verification.exit_code == 1
    assert "1 more tensors are not there in the base's shape" in found(verification, "skipped").note


@needs_extra
def test_a_lora_without_effect_warns(tmp_path: Path) -> None:
    tensors = load_file(DEMO / "neon.safetensors")
    silent = {key: value * 0 if "lora_up" in key else value for key, value in tensors.items()}
    save_file(silent, tmp_path / "silent.safetensors")
    path = recipe(tmp_path, ["silent.safetensors"])
    run(path)
    verification = look(path)
    assert found(verification, "effect").status is Status.WARN
    assert verification.is_true


@needs_extra
@pytest.mark.parametrize("kind", ["blocks", "dora"])
def test_what_the_programs_would_do_otherwise_falls_to_the_formulas(tmp_path: Path, kind: str) -> None:
    lora: object = {**NEON, "blocks": {"up_blocks.*": 0}}
    if kind == "dora":
        tensors = load_file(DEMO / "neon.safetensors")
        name = next(key for key in tensors if key.endswith(".lora_up.weight"))
        tensors[name.replace(".lora_up.weight", ".dora_scale")] = torch.ones(len(tensors[name]), 1)
        save_file(tensors, tmp_path / "dora.safetensors")
        lora = "dora.safetensors"
    path = recipe(tmp_path, [lora])
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    told = found(verification, "reference")
    assert told.measured == ("diffusers" if kind == "blocks" else "lorabake's formulas")
    assert ("DoRA" in told.note) == (kind == "dora")


@needs_extra
def test_options_take_the_place_of_the_recipes(tmp_path: Path) -> None:
    path = recipe(tmp_path, [NEON])
    run(path)
    seen: list[tuple[int, int]] = []
    options = {"prompts": ("one", "two"), "seed": 7, "steps": 1, "size": (64, 128)}
    samples = look(path, progress=lambda done, total, label: seen.append((done, total)), **options).samples
    assert samples is not None
    assert [(each.prompt, each.seed) for each in samples.pictures] == [("one", 7), ("two", 8)]
    assert samples.pictures[0].pictures["baked"].shape == (128, 64, 3)
    assert samples.settings["steps"] == 1
    assert seen == [(number, 8) for number in range(1, 9)]


@needs_extra
def test_a_size_that_the_model_cannot_make_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, [NEON], size=72)
    run(path)
    with pytest.raises(RecipeError, match="multiples of 64"):
        look(path)


def test_without_prompts_nothing_is_sampled_and_nothing_proved(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    b.bake_sd1(tmp_path)
    verification = look(tmp_path / "recipe.yaml")
    assert verification.exit_code == 2
    assert "verify.prompts" in found(verification, "skipped").note


def test_without_the_extra_the_message_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path, [NEON])
    run(path)
    monkeypatch.setattr("lorabake.verification.samples.find_spec", lambda name: None)
    with pytest.raises(SurroundingsError, match=r"pip install '\.\[verify\]'"):
        look(path)


def test_a_single_network_cannot_draw(tmp_path: Path) -> None:
    unet = {key: value for key, value in b.sd1().items() if key.startswith("model.diffusion_model.")}
    b.save(tmp_path / "base.safetensors", unet)
    b.kohya(tmp_path / "lora.safetensors", {b.unet_lora(b.Q): b.lora((b.W, b.W))})
    b.bake_sd1(tmp_path)
    verification = look(tmp_path / "recipe.yaml", prompts=("a cat",))
    assert "a single network" in found(verification, "skipped").note


# -- what ships ---------------------------------------------------------------------------------------------


@needs_extra
def test_the_vocabulary_is_whole() -> None:
    made = tokenizer()
    assert len(made) == 49408
    assert made("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("!")("a", padding="max_length", max_length=4).input_ids[-1] == 0


@pytest.mark.parametrize(
    ("table", "family", "components"),
    [
        ("full_sd15_singlefile_1131", "sd1", ["unet", "vae", "text_encoder"]),
        ("full_sdxl_singlefile_2515", "sdxl", ["unet", "vae", "text_encoder", "text_encoder_2"]),
        ("diffusers_sd21_unet", "sd2", ["unet"]),
        ("arenasys_unet_xl_refiner", "sdxl_refiner", ["unet"]),
    ],
)
def test_sizes_read_from_real_headers_are_the_published_ones(table: str, family: str, components: list[str]) -> None:
    tensors = load_table(table)
    key_map = KeyMap.expand(identify(tensors), tensors)
    assert key_map.architecture.name == family
    for component in components:
        published = json.loads(shipped().joinpath(family, component, "config.json").read_text())
        read = sizes_of(component, Told.by(key_map), {})
        assert {name: published[name] for name in read} == read


def test_an_inpainting_header_widens_the_input() -> None:
    tensors = load_table("diffusers_sd15_inpaint_unet")
    assert sizes_of("unet", Told.by(KeyMap.expand(SD1, tensors)), {})["in_channels"] == 9


# -- texts --------------------------------------------------------------------------------------------------


@needs_extra
def test_a_language_model_tells_its_story(tmp_path: Path) -> None:
    for name in ("stories260K", "stories260K_dragon"):
        (tmp_path / name).symlink_to(ROOT / "recipes" / name)
    content = yaml.safe_load((ROOT / "recipes" / "llm.yaml").read_text())
    content["output"]["path"] = "out"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    samples = verification.samples
    assert samples is not None
    assert samples.reference == "PEFT"
    (text,) = samples.texts
    assert "little girl named Lily" in text.texts["base"]
    assert "green dragon named Tom" in text.texts["baked"]
    assert max(text.logits["baked"]) < 1e-3 < max(text.logits["base"])

    content["loras"] = [{"path": "stories260K_dragon", "strength": 0.5}]
    path.write_text(yaml.safe_dump(content))
    run(path)
    content["loras"] = ["stories260K_dragon"]
    path.write_text(yaml.safe_dump(content))
    assert found(look(path), "logits").status is Status.FAIL


def story(folder: Path, *loras: object) -> Path:
    for name in ("stories260K", "stories260K_dragon"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / "recipes" / name)
    path = folder / "recipe.yaml"
    content = {"version": 1, "base": "stories260K", "loras": list(loras), "output": {"path": "out"}}
    path.write_text(yaml.safe_dump({**content, "verify": {"prompts": ["Once upon a time"]}}))
    return path


@needs_extra
def test_peft_applies_several_loras_together(tmp_path: Path) -> None:
    copied = tmp_path / "again"
    copied.mkdir()
    for file in (ROOT / "recipes" / "stories260K_dragon").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    path = story(tmp_path, {"path": "stories260K_dragon", "strength": 0.75}, {"path": "again", "strength": 0.25})
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    assert verification.samples is not None
    assert verification.samples.reference == "PEFT"
    assert "green dragon named Tom" in verification.samples.texts[0].texts["runtime"]


@needs_extra
def test_peft_is_no_reference_where_the_recipe_leaves_modules_out(tmp_path: Path) -> None:
    path = story(tmp_path, {"path": "stories260K_dragon", "blocks": {"model.layers.0.*": 0}})
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    told = found(verification, "reference")
    assert told.measured == "lorabake's formulas"
    assert "PEFT changes" in told.note


# -- several outputs ------------------------------------------------------------------------------------------


def baked(recipes: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
    outcomes = bake_all(recipes, BatchOptions(run=RunOptions(device="cpu", fsync=False)))
    assert {outcome.status for outcome in outcomes} == {"baked"}
    return recipes


def sampled(folder: Path, **verify: object) -> tuple[Recipe, ...]:
    """Write and bake a sweep over the demo's models."""
    said = {"prompts": ["a large red circle"], "config": str(DEMO / "config"), "size": 64, "steps": 1}
    content = {
        "version": 1,
        "matrix": {"strength": [0.4, 0.9], "set": {"style": [{**NEON, "strength": "${strength}"}], "other": [BLORP]}},
        "base": str(DEMO / "shapes.safetensors"),
        "loras": "${set}",
        "output": {"path": "out/${set}-${strength}.safetensors"},
        "verify": {**said, **verify},
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    return baked(load_recipes(folder / "sweep.yaml")[:2])


@needs_extra
def test_the_base_draws_each_prompt_once_for_all_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = sampled(tmp_path)
    options = VerifyOptions(stages=("samples",))
    alone = portable(verify(recipes[1], options=options))
    drawn: Counter[str] = Counter()
    denoise = UNets.denoise

    def counted(self: UNets, networks: Any, words: Any, variant: Any, number: int, tick: Any) -> Any:
        drawn[variant.name] += 1
        return denoise(self, networks, words, variant, number, tick)

    monkeypatch.setattr(UNets, "denoise", counted)
    batch = verify_all(recipes, options, report=tmp_path / "report")
    assert drawn == {"base": 1, "runtime": 2, "floor": 2, "baked": 2}
    assert batch.outputs[1].findings == alone.findings
    assert len(batch.bases) == 1
    assert [output.bases for output in batch.outputs] == [(0,)] * 2
    page = (tmp_path / "report" / "index.html").read_text()
    assert len(re.findall(r'<img [^>]*alt="the base, ', page)) == 1
    assert len(re.findall(r'<a class="cell" href="outputs/[^"]+">\s*<img [^>]*width="128" height="128"', page)) == 2
    assert (tmp_path / "report" / "grid.png").read_bytes().startswith(b"\x89PNG")


@needs_extra
def test_a_language_model_writes_its_base_s_text_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {
        "version": 1,
        "matrix": {"strength": [0.5, 1]},
        "base": str(ROOT / "recipes" / "stories260K"),
        "loras": [{"path": str(ROOT / "recipes" / "stories260K_dragon"), "strength": "${strength}"}],
        "output": {"path": "out/dragon-${strength}"},
        "verify": {"prompts": ["Once upon a time"]},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    recipes = baked(load_recipes(tmp_path / "sweep.yaml"))
    written: list[object] = []
    greedy = texts._greedy
    monkeypatch.setattr(texts, "_greedy", lambda *given: (written.append(given), greedy(*given))[1])
    options = VerifyOptions(stages=("samples",), samples=SampleOptions(steps=4))
    batch = verify_all(recipes, options, report=tmp_path / "report")
    assert batch.counts == {"verified": 2}
    assert len(written) == 2 * 4 - 1
    assert batch.bases[0].text.startswith("Once upon a time")
    assert batch.bases[0].text in (tmp_path / "report" / "index.html").read_text()


def test_the_command_is_listed() -> None:
    assert "verify" in cli.list_commands(None)  # type: ignore[arg-type]
