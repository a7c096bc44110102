"""The third stage with diffusers' own pipelines: tiny random ones of every family, without a network."""

from __future__ import annotations

import json
import shutil
import socket
from functools import cache
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from lorabake import RunOptions, bake, load_recipe
from lorabake.architectures import architectures
from lorabake.configs import shipped
from lorabake.keymap.expansion import KeyMap
from lorabake.sources.family import identify
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, SampleOptions, Samples, Status, Verification
from lorabake.verification.samples import NEEDED
from tests import builders, pipelines
from tests.documents import checked
from tests.translation import translate

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


@cache
def pipeline(folders: Path, family: str) -> Any:
    return pipelines.save(folders / family, family)


PAGE = Path(__file__).parents[2] / "docs" / "verification.md"
CONFIGS = Path(str(shipped()))
CHANGED = (".to_q", ".to_v", ".to_out.0", ".to_query", ".q_proj")
MAKERS = {
    "flux": "bfl", "flux2": "bfl", "sd3": "sai", "wan": "wan", "z_image": "native", "chroma": "bfl",
    "ltx": "lightricks", "lumina2": "alpha_vllm", "hunyuan_video": "tencent", "sana": "nvlabs", "auraflow": "fal",
    "mochi": "genmo", "pixart": "pixart", "hunyuandit": "tencent", "hunyuan_image": "tencent", "ltx2": "lightricks",
}  # fmt: skip
NAMED_BY_TABLES = {
    **dict.fromkeys(("flux", "chroma", "lumina2", "hunyuan_video"), "conversion fails: split_with_sizes"),
    **dict.fromkeys(("pixart", "hunyuandit", "hunyuan_image"), "has no conversion"),
    "mochi": "conversion fails: 'blocks.1.mod_y.weight'",  # it counts 48 blocks
    "sana": "conversion fails: 'pos_embed'",  # a table of sines that published files carry, too
}
"""Families whose conversion in diffusers has the published sizes in its code, or is a script."""


def write_lora(path: Path, network: Any, component: str = "transformer", most: int = 4) -> None:
    """Write a LoRA on some of a network's attention layers, as diffusers does."""
    chosen = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.endswith((".to_q", ".to_v", ".to_out.0", ".to_query", ".q_proj"))
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
    return checked(verify(load_recipe(path), None, VerifyOptions(stages=("samples",), samples=chosen)))


def found(verification: Verification, check: str) -> Finding:
    return next(each for each in verification.findings if each.check == f"samples.{check}")


def assert_drawn(made: Any, samples: Samples, steps: int = 2) -> None:
    """Check the base's picture against the pipeline's own, called plainly."""
    known = signature(made.__call__).parameters
    said = {
        "prompt": "a red fox", "negative_prompt": "", "num_inference_steps": steps, "width": 32, "height": 32,
        "num_frames": 1, "use_resolution_binning": False, "generator": torch.Generator().manual_seed(0),
        "output_type": "np",
    }  # fmt: skip
    made.set_progress_bar_config(disable=True)
    with catch_warnings():
        simplefilter("ignore")
        out = made(**{name: value for name, value in said.items() if name in known})
    name = next((each for each in ("images", "image", "frames") if hasattr(out, each)), None)
    if name is None:  # Stable Cascade's stage C makes what stage B starts from
        return
    picture = np.asarray(getattr(out, name))[0]
    picture = picture[len(picture) // 2] if picture.ndim == 4 else picture
    seen = samples.pictures[0].pictures["base"].astype(int)
    assert seen.shape == picture.shape
    assert np.abs(seen - (picture * 255).round()).max() <= 1


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_every_family_draws(folders: Path, tmp_path: Path, family: str) -> None:
    made = pipeline(folders, family)
    component = "prior" if hasattr(made, "prior") else "transformer"
    write_lora(tmp_path / "lora.safetensors", getattr(made, component), component)
    path = recipe(tmp_path, folders / family)
    run(path)
    # These two make a megapixel, whatever is asked for.
    steps = 1 if family in ("hidream", "kandinsky5") else 2
    verification = look(path, steps=steps)
    assert verification.status is Status.PASS, verification.findings
    samples = verification.samples
    assert samples is not None
    assert samples.reference == pipelines.REFERENCES.get(family, "diffusers"), verification.findings
    likeness = samples.pictures[0].likeness
    assert max(likeness["floor"].latents, likeness["baked"].latents) < likeness["base"].latents / 10
    assert_drawn(made, samples, steps)

    run(recipe(tmp_path, folders / family, strength=0.4))
    assert found(look(recipe(tmp_path, folders / family), steps=steps), "likeness").status is Status.FAIL


# -- the page -------------------------------------------------------------------------------------------------


def table() -> str:
    """Write the families' table of docs/verification.md."""
    rows = []
    for family, (drawn, _) in pipelines.FAMILIES.items():
        (known,) = (each for each in architectures() if each.name == family)
        layouts = ", ".join(layout.name for layout in known.components[0].layouts)
        ships = "a folder, or a file" if (CONFIGS / family / "model_index.json").is_file() else "a folder"
        loads = pipelines.REFERENCES.get(family, "diffusers, PEFT")
        rows.append(f"| {known.title} | {drawn} | {ships} ({layouts}) | {loads} |")
    head = "| family | drawn by | from | LoRAs at run time |\n|---|---|---|---|"
    return "\n".join([head, *sorted(rows, key=str.lower)])


def parts_of_page() -> tuple[str, str, str]:
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(
        "<!-- families: python -m tests.verification.test_pipelines -->\n"
    )
    _, end, after = rest.partition("<!-- /families -->")
    return before + mark, rest[: -len(end + after)], end + after


def test_the_page_says_which_family_draws_how() -> None:
    assert parts_of_page()[1].strip() == table(), "write it anew: python -m tests.verification.test_pipelines"


# -- other bases ----------------------------------------------------------------------------------------------


def single_file(folder: Path, layout: str, path: Path, also: dict[str, str] | None = None) -> None:
    """Write the transformer in its makers' layout, and the components of `also` below their prefixes."""
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors, infos = load_file(file), open_checkpoint(file).tensors
    key_map = KeyMap.expand(identify(infos), infos)
    due = translate(key_map.architecture.components[0], infos, "diffusers", layout)
    made = {key: value for key, value in tensors.items() if key in due}
    for name, module in key_map.modules_in("transformer", layout).items():
        for parameter, view in module.views.items():
            key = next((each for each in (f"{name}.{parameter}", name) if each in due), None)
            if key is not None:
                made[key] = view.read(tensors)
    assert {key: tuple(value.shape) for key, value in made.items()} == due
    made = {f"model.diffusion_model.{key}": value for key, value in made.items()}
    for component, prefix in (also or {}).items():
        (file,) = (folder / component).glob("*.safetensors")
        made |= {prefix + key: value for key, value in load_file(file).items()}
    save_file({key: value.contiguous().clone() for key, value in made.items()}, path)


@pytest.mark.parametrize(("family", "layout"), MAKERS.items())
def test_a_makers_file_draws_with_the_rest_from_a_folder(
    folders: Path, tmp_path: Path, family: str, layout: str
) -> None:
    made = pipeline(folders, family)
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    single_file(folders / family, layout, tmp_path / "base.safetensors")
    path = recipe(tmp_path, tmp_path / "base.safetensors", config=str(folders / family))
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    samples = verification.samples
    assert samples is not None
    assert samples.reference == pipelines.REFERENCES.get(family, "diffusers"), verification.findings
    names = str(samples.settings.get("names", ""))
    assert NAMED_BY_TABLES[family] in names if family in NAMED_BY_TABLES else not names
    assert_drawn(made, samples)


def test_all_in_one_file_draws(folders: Path, tmp_path: Path) -> None:
    """Text encoders and VAE are the file's own, CLIP under its old names, and get their LoRAs."""
    made = pipeline(folders, "flux")
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    tensors = load_file(tmp_path / "lora.safetensors")
    write_lora(tmp_path / "lora.safetensors", made.text_encoder, "text_encoder")
    clip = load_file(tmp_path / "lora.safetensors")
    save_file(tensors | clip, tmp_path / "lora.safetensors")
    prefixes = {"text_encoder": "text_encoders.clip_l.transformer.", "vae": "vae."}
    prefixes["text_encoder_2"] = "text_encoders.t5xxl.transformer."
    single_file(folders / "flux", "bfl", tmp_path / "base.safetensors", prefixes)
    tensors = load_file(tmp_path / "base.safetensors")
    start = prefixes["text_encoder"]
    own = {key.removeprefix(start).removeprefix("text_model."): key for key in tensors if key.startswith(start)}
    renamed = {f"{start}text_model.{name}": tensors.pop(key) for name, key in own.items()}
    renamed |= tensors
    save_file(renamed, tmp_path / "base.safetensors")
    given = tmp_path / "given"
    shutil.copytree(folders / "flux", given, ignore=shutil.ignore_patterns("*.safetensors"))
    path = recipe(tmp_path, tmp_path / "base.safetensors", config=str(given))
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    assert verification.samples is not None
    assert verification.samples.reference == "diffusers", verification.findings
    assert_drawn(made, verification.samples)


def test_without_the_other_networks_it_says_what_to_give(folders: Path, tmp_path: Path) -> None:
    made = pipeline(folders, "flux")
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    single_file(folders / "flux", "bfl", tmp_path / "base.safetensors")
    path = recipe(tmp_path, tmp_path / "base.safetensors")
    run(path)
    note = found(look(path), "skipped").note
    assert "FluxPipeline takes more than the base has: text_encoder, text_encoder_2" in note
    assert "verify.config" in note


def test_a_folder_of_another_network_is_told(folders: Path, tmp_path: Path) -> None:
    made = pipeline(folders, "sd3")
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    given = tmp_path / "given"
    shutil.copytree(folders / "sd3", given)
    config = json.loads((given / "transformer" / "config.json").read_text())
    (given / "transformer" / "config.json").write_text(json.dumps({**config, "num_layers": 5}))
    single_file(folders / "sd3", "sai", tmp_path / "base.safetensors")
    path = recipe(tmp_path, tmp_path / "base.safetensors", config=str(given))
    run(path)
    assert "its configuration is for another network" in found(look(path), "skipped").note


def test_what_the_pipeline_refuses_is_told(folders: Path, tmp_path: Path) -> None:
    made = pipeline(folders, "z_image")
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    path = recipe(tmp_path, folders / "z_image", size=33)
    run(path)
    assert "ZImagePipeline cannot draw with this base: Height must be divisible" in found(look(path), "skipped").note


def test_text_encoders_in_the_base_get_their_loras(folders: Path, tmp_path: Path) -> None:
    made = pipeline(folders, "sd3")
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    tensors = load_file(tmp_path / "lora.safetensors")
    write_lora(tmp_path / "lora.safetensors", made.text_encoder, "text_encoder")
    save_file(tensors | load_file(tmp_path / "lora.safetensors"), tmp_path / "lora.safetensors")
    path = recipe(tmp_path, folders / "sd3")
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    assert verification.samples is not None
    assert verification.samples.reference == "diffusers", verification.findings


def test_without_a_vae_the_latents_are_shown(folders: Path, tmp_path: Path) -> None:
    made = pipeline(folders, "sd3")
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    given = tmp_path / "given"
    shutil.copytree(folders / "sd3", given)
    (given / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    single_file(folders / "sd3", "sai", tmp_path / "base.safetensors")
    path = recipe(tmp_path, tmp_path / "base.safetensors", config=str(given))
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    assert verification.samples is not None
    assert "there is no VAE" in str(verification.samples.settings["pictures"])
    assert verification.samples.pictures[0].pictures["baked"].shape == (32, 32, 3)


def scale(path: Path) -> None:
    """Store the blocks' matrices of a file in float8, each with a scale beside it, as ComfyUI does."""
    tensors = load_file(path)
    for key, value in list(tensors.items()):
        if value.ndim == 2 and ".blocks." in key and key.endswith(".weight"):
            factor = value.abs().max() / 448
            tensors[key] = (value / factor).to(torch.float8_e4m3fn)
            tensors[key.replace(".weight", ".scale_weight")] = factor.reshape(1)
    tensors["model.diffusion_model.scaled_fp8"] = torch.empty(2).to(torch.float8_e4m3fn)
    save_file(tensors, path)


@pytest.mark.parametrize("dtype", ["keep", "bfloat16"])
def test_weights_with_scales_draw_as_what_they_hold(folders: Path, tmp_path: Path, dtype: str) -> None:
    made = pipeline(folders, "wan")
    write_lora(tmp_path / "lora.safetensors", made.transformer)
    single_file(folders / "wan", "wan", tmp_path / "base.safetensors")
    scale(tmp_path / "base.safetensors")
    path = recipe(tmp_path, tmp_path / "base.safetensors", config=str(folders / "wan"))
    content = yaml.safe_load(path.read_text())
    content["output"]["dtype"] = dtype
    path.write_text(yaml.safe_dump(content))
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    assert verification.samples is not None
    assert verification.samples.reference == "diffusers", verification.findings

    content["loras"][0]["strength"] = -0.8
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(content))
    run(other)
    assert found(look(path), "likeness").status is Status.FAIL


def test_a_lora_of_fused_layers_is_split_by_diffusers(folders: Path, tmp_path: Path) -> None:
    """kohya trains q, k and v of Flux.1 as one; diffusers has three layers for them."""
    made = pipeline(folders, "flux")
    width = made.transformer.config.num_attention_heads * made.transformer.config.attention_head_dim
    generator = torch.Generator().manual_seed(1)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, width, generator=generator) * 0.3,
        f"{name}.lora_up.weight": torch.randn(3 * width, 2, generator=generator) * 0.3,
        f"{name}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    path = recipe(tmp_path, folders / "flux")
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    assert verification.samples is not None
    assert verification.samples.reference == "diffusers", verification.findings


def test_peft_loads_its_own_folders(folders: Path, tmp_path: Path) -> None:
    made = pipeline(folders, "sd3")
    write_lora(tmp_path / "all.safetensors", made.transformer)
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(tmp_path / "all.safetensors").items():
        module, slot = key.removeprefix("transformer.").removesuffix(".weight").rsplit(".lora_", 1)
        modules.setdefault(module, {})["down" if slot == "A" else "up"] = value
    builders.peft(tmp_path / "lora.safetensors", modules, target_modules=sorted(modules))
    path = recipe(tmp_path, folders / "sd3")
    run(path)
    verification = look(path)
    assert verification.status is Status.PASS, verification.findings
    assert verification.samples is not None
    assert verification.samples.reference == "PEFT", verification.findings


if __name__ == "__main__":
    start, _, end = parts_of_page()
    PAGE.write_text(f"{start}\n{table()}\n\n{end}", encoding="utf-8")
