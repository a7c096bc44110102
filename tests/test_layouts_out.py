"""Layouts out: a single file becomes a diffusers folder and back, and no value changes on the way."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabake import RunOptions, VerifyOptions, bake_together, load_recipe, plan, verify
from lorabake.components.unet import SCHEDULE
from lorabake.errors import LorabakeError
from lorabake.keymap.expansion import KeyMap
from lorabake.planning.layout import names_for
from lorabake.reference.survival import survival
from lorabake.sources.family import identify
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.verification import embedded_recipe
from lorabake.verification.findings import Status
from tests import builders as b

GONE = {
    "sd1": {
        "alphas_cumprod",
        "betas",
        "v_pred",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    },
    "sdxl": {"conditioner.embedders.1.model.logit_scale"},
}


def to(folder: Path, base: str, path: str, layout: object, **fields: object) -> Path:
    """Bake a base into another layout."""
    output = {"path": path, "layout": layout, **fields.pop("output", {})}  # type: ignore[dict-item]
    return b.run(b.recipe(folder, base=base, **{"loras": [], **fields, "output": output})).path


def values(path: Path) -> b.Tensors:
    """Read all tensors of a checkpoint, by their keys in it."""
    checkpoint = open_checkpoint(path)
    found: b.Tensors = {}
    for part in checkpoint.parts:
        for header in part.files:
            loaded = load_file(header.path)
            found |= {info.key: loaded[info.name] for info in header.tensors.values()}
    return found


def assert_equal(one: b.Tensors, other: b.Tensors) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[key].dtype, other[key].shape), key
        assert torch.equal(tensor.view(torch.uint8), other[key].view(torch.uint8)), key


@pytest.mark.parametrize("family", GONE)
def test_a_single_file_comes_back_byte_for_byte(tmp_path: Path, family: str) -> None:
    base = getattr(b, family)()
    anew = {*SCHEDULE, "v_pred"} if family == "sd1" else set()
    b.save(tmp_path / "base.safetensors", base)
    folder = to(tmp_path, "base.safetensors", "folder", "diffusers")
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {"unet", "text_encoder", "vae"}
    back = to(tmp_path, "folder", "back.safetensors", "single")
    kept = {key: tensor for key, tensor in base.items() if key not in GONE[family]}
    assert len(base) - len(kept) == len(GONE[family])
    found = values(back)
    assert found.keys() - kept.keys() == anew
    assert_equal({key: found[key] for key in kept}, kept)


def test_a_folder_comes_back_byte_for_byte(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    to(tmp_path, "base", "single.safetensors", "single")
    assert_equal(values(to(tmp_path, "single.safetensors", "back", "diffusers")), values(tmp_path / "base"))


def test_loras_give_the_values_of_the_baked_file_in_the_other_layout(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    at_once = to(tmp_path, "base.safetensors", "at_once", "diffusers", loras=["lora.safetensors"])
    b.run(
        b.recipe(tmp_path, base="base.safetensors", loras=["lora.safetensors"], output={"path": "baked.safetensors"})
    )
    later = to(tmp_path, "baked.safetensors", "later", "diffusers")
    assert_equal(values(at_once), values(later))
    assert any(
        not torch.equal(one, values(later)[key])
        for key, one in values(to(tmp_path, "base.safetensors", "plain", "diffusers")).items()
    )


def test_notes_name_what_is_left_out(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1(ema=True))
    path = b.recipe(tmp_path, base="base.safetensors", loras=[], output={"path": "out", "layout": "diffusers"})
    notes = "\n".join(plan(load_recipe(path)).notes)
    for named in ("alphas_cumprod", "v_pred", "position_ids", "model_ema"):
        assert named in notes


def test_a_tensor_of_unknown_meaning_is_refused(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {**b.sd1(), "depth_model.conv.weight": torch.zeros(2, 2)})
    path = b.recipe(tmp_path, base="base.safetensors", loras=[], output={"path": "out", "layout": "diffusers"})
    with pytest.raises(LorabakeError, match=r"belong to no component.*depth_model\.conv\.weight"):
        plan(load_recipe(path))


# -- verification --------------------------------------------------------------------------------------------


def lora_on_all(path: Path, base: Path, **options: object) -> None:
    """Write a LoRA on every matrix and kernel of a base, by diffusers' names."""
    tensors = open_checkpoint(base).tensors
    key_map = KeyMap.expand(identify(tensors), tensors)
    modules = {}
    for component in (key_map.component(name) for name in key_map.placed):
        layout = names_for(component, "diffusers")[0].name
        for name, module in key_map.modules_in(component.name, layout).items():
            shape = module.views["weight"].shape if "weight" in module.views else ()
            if len(shape) > 1 and not name.rpartition(".")[2].isdigit() and "embed" not in name:
                flat = component.flat[0] + name.replace(".", "_")
                modules[flat] = b.lora(shape, seed=len(modules), alpha=1.0, **options)  # type: ignore[arg-type]
    assert len(modules) > 20
    b.kohya(path, modules)


def baked_into(folder: Path, family: str, layout: str, *, dora: str | None = None, **fields: object) -> Path:
    """Bake a LoRA into a base in the other layout; return the recipe."""
    b.save(folder / "base.safetensors", getattr(b, family)())
    base = "base.safetensors"
    if layout == "single":
        base = to(folder, base, "base", "diffusers").name
    lora_on_all(folder / "lora.safetensors", folder / base, dora=dora)
    path = "out" if layout == "diffusers" else "out.safetensors"
    output = {"path": path, "layout": layout, **fields.pop("output", {})}  # type: ignore[dict-item]
    recipe = b.recipe(folder, base=base, **{"loras": ["lora.safetensors"], **fields, "output": output})
    b.run(recipe)
    return recipe


WEIGHTS = [VerifyOptions(stages=["structure", stage]) for stage in ("weights", "quick")]


@pytest.mark.parametrize("dora", [None, "row"])
@pytest.mark.parametrize("layout", ["diffusers", "single"])
@pytest.mark.parametrize("family", GONE)
def test_a_converted_bake_is_proved(tmp_path: Path, family: str, layout: str, dora: str | None) -> None:
    recipe = baked_into(tmp_path, family, layout, dora=dora)
    for options in WEIGHTS:
        b.assert_right(verify(recipe, options=options))


@pytest.mark.parametrize(
    "output", [{"dtype": "bfloat16", "allow_loss": True}, {"dtype": "float16", "rounding": "stochastic"}], ids=str
)
def test_a_dtype_and_drawn_rounding_are_those_of_the_base_layout(tmp_path: Path, output: dict[str, object]) -> None:
    """A value is rounded by its place in the base, so that it is the same in every layout."""
    recipe = baked_into(tmp_path, "sdxl", "diffusers", output=output)
    b.assert_right(verify(recipe, options=WEIGHTS[0]))
    plain = {**output, "path": "plain.safetensors"}
    b.run(b.recipe(tmp_path, base="base.safetensors", loras=["lora.safetensors"], output=plain))
    assert_equal(values(to(tmp_path, "plain.safetensors", "later", "diffusers")), values(tmp_path / "out"))


@pytest.mark.parametrize("stage", ["weights", "quick"])
@pytest.mark.parametrize(
    "key",
    [
        "unet/down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "text_encoder_2/text_model.encoder.layers.0.self_attn.k_proj.weight",  # rows of a tensor of the base
        "text_encoder_2/text_projection.weight",  # turned
        "vae/decoder.mid_block.attentions.0.to_q.weight",
    ],
)
def test_one_wrong_value_is_found(tmp_path: Path, stage: str, key: str) -> None:
    recipe = baked_into(tmp_path, "sdxl", "diffusers")
    folder, _, name = key.partition("/")
    (path,) = (tmp_path / "out" / folder).glob("*.safetensors")
    tensors, metadata = load_file(path), b.header(path)[1]
    tensors[name][3, 1] += 4
    save_file(tensors, path, metadata)
    found = verify(recipe, options=VerifyOptions(stages=[stage]))
    assert not found.is_true
    (wrong,) = {each.key for each in found.tensors if each.what != "applied"}
    targets = {target.key: target for file in plan(load_recipe(recipe)).files for target in file.targets}
    assert targets[key].source.keys == (wrong,)


@pytest.mark.parametrize("stage", ["weights", "quick"])
def test_exchanged_tensors_are_found(tmp_path: Path, stage: str) -> None:
    recipe = baked_into(tmp_path, "sdxl", "diffusers", loras=[], output={"dtype": "keep"})
    (path,) = (tmp_path / "out" / "text_encoder_2").glob("*.safetensors")
    tensors, metadata = load_file(path), b.header(path)[1]
    one, other = (f"text_model.encoder.layers.1.self_attn.{name}_proj.weight" for name in "qk")
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, path, metadata)
    assert not verify(recipe, options=VerifyOptions(stages=[stage])).is_true


def test_what_a_coarse_output_keeps_is_estimated(tmp_path: Path) -> None:
    recipe = baked_into(tmp_path, "sdxl", "diffusers", output={"dtype": "bfloat16", "allow_loss": True})
    kept = survival(plan(load_recipe(recipe)))
    plain = {"path": "plain.safetensors", "dtype": "bfloat16"}
    path = b.recipe(tmp_path, base="base.safetensors", loras=["lora.safetensors"], output=plain)
    assert kept == survival(plan(load_recipe(path)))
    assert 0.5 < kept[0] < 1.5


# -- form ----------------------------------------------------------------------------------------------------


def test_a_component_is_cut_into_shards_with_an_index(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sdxl())
    whole = to(tmp_path, "base.safetensors", "whole", "diffusers")
    cut = to(tmp_path, "base.safetensors", "cut", "diffusers", output={"shard_size": 3000})
    names = sorted(path.name for path in (cut / "unet").iterdir())
    assert len(names) > 4
    assert "diffusion_pytorch_model.safetensors.index.json" in names
    assert_equal(values(cut), values(whole))
    b.assert_right(verify(tmp_path / "recipe.yaml", options=WEIGHTS[0]))


def refused(folder: Path, base: str, **output: object) -> str:
    with pytest.raises(LorabakeError) as caught:
        plan(load_recipe(b.recipe(folder, base=base, loras=[], output=output)))
    return str(caught.value)


def test_a_single_file_has_no_shards(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    told = refused(tmp_path, "base", path="out.safetensors", layout="single", shard_size="1GB")
    assert told.startswith("output.layout is single, and output.shard_size cuts the output into several files")


def test_the_output_s_name_fits_its_layout(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    told = refused(tmp_path, "base.safetensors", path="out.safetensors", layout="diffusers")
    assert "output.layout is diffusers, so the output must be a folder" in told
    b.sd1_folder(tmp_path / "folder")
    assert "output.layout is single, and the output must be" in refused(
        tmp_path, "folder", path="out", layout="single"
    )


def test_a_layout_that_the_base_has_already_changes_nothing(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    path = to(tmp_path, "base.safetensors", "out.safetensors", "single")
    assert b.tensor_bytes(path) == b.tensor_bytes(tmp_path / "base.safetensors")  # buffers and all
    b.sd1_folder(tmp_path / "folder")
    out = to(tmp_path, "folder", "out", "diffusers")
    assert (out / "tokenizer" / "vocab.json").read_text() == "{}"
    assert_equal(values(out), values(tmp_path / "folder"))


def test_names_that_a_family_does_not_have_are_refused(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base")
    told = refused(tmp_path, "base", path="out.safetensors", layout={"single": "comfy"})
    assert "Stable Diffusion 1.x has none of these" in told
    assert "{single: ldm}" in told


def test_a_family_with_one_layout_is_refused(tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    told = refused(tmp_path, "base", path="out.safetensors", layout="single")
    assert "in another layout" in told or "in one layout only" in told
    assert "Remove output.layout" in told


def test_a_network_whose_names_no_table_has_is_refused(tmp_path: Path) -> None:
    """The VAE of Wan has only the names of its own file."""
    network = {key: torch.ones(2, 2) for key in ("condition_embedder.time_proj.weight", "blocks.0.attn1.to_q.weight")}
    network["patch_embedding.weight"] = torch.ones(2, 2, 1, 1, 1)
    b.save(tmp_path / "base" / "transformer" / "diffusion_pytorch_model.safetensors", network)
    vae = {"encoder.conv_in.weight": torch.ones(2, 2)}
    b.save(tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors", vae)
    told = refused(tmp_path, "base", path="out.safetensors", layout="single")
    assert "no table says what the vae is called" in told
    assert f"Give the network alone as the base: {tmp_path / 'base' / 'transformer'}" in told
    made = to(tmp_path, "base/transformer", "out.safetensors", "single")
    assert values(made).keys() == {
        "time_projection.1.weight",
        "blocks.0.self_attn.q.weight",
        "patch_embedding.weight",
    }


def test_weights_with_scales_are_refused_until_they_become_plain(tmp_path: Path) -> None:
    base = b.sd1(extras=False)
    key = b.SD1_KEYS[b.Q]
    base[key] = base[key].to(torch.float8_e4m3fn)
    base[key.removesuffix("weight") + "scale_weight"] = torch.tensor(0.5)
    base["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    b.save(tmp_path / "base.safetensors", base)
    told = refused(tmp_path, "base.safetensors", path="out", layout="diffusers")
    assert "only plain weights can be written in another layout" in told
    out = to(tmp_path, "base.safetensors", "out", "diffusers", output={"dtype": "float16"})
    found = values(out)[f"unet/{b.Q}.weight"]
    assert torch.equal(found, (base[key].float() * 0.5).half())
    b.assert_right(verify(tmp_path / "recipe.yaml", options=WEIGHTS[0]))


def test_parts_of_one_tensor_need_one_dtype(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sdxl())
    folder = to(tmp_path, "base.safetensors", "folder", "diffusers")
    (path,) = (folder / "text_encoder_2").glob("*.safetensors")
    tensors = load_file(path)
    key = "text_model.encoder.layers.0.self_attn.k_proj.weight"
    tensors[key] = tensors[key].float()
    save_file(tensors, path, {"format": "pt"})
    told = refused(tmp_path, "folder", path="out.safetensors", layout="single")
    assert "is made of" in told
    assert "output.dtype: float16" in told
    to(tmp_path, "folder", "out.safetensors", "single", output={"dtype": "float16"})


def test_a_part_that_lacks_is_named(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sdxl())
    folder = to(tmp_path, "base.safetensors", "folder", "diffusers")
    (path,) = (folder / "text_encoder_2").glob("*.safetensors")
    tensors = load_file(path)
    del tensors["text_model.encoder.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    told = refused(tmp_path, "folder", path="out.safetensors", layout="single")
    assert "layers.1.self_attn.q_proj.weight is one of 3 parts of transformer.resblocks.1.attn.in_proj_weight" in told


# -- what is made anew ---------------------------------------------------------------------------------------


def scheduled(folder: Path, **config: object) -> Path:
    """Make SD 1.x in a folder whose scheduler says this."""
    b.sd1_folder(folder / "base")
    said = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
    said |= {"beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon", **config}
    index = json.loads((folder / "base" / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (folder / "base" / "model_index.json").write_text(json.dumps(index))
    (folder / "base" / "scheduler").mkdir()
    (folder / "base" / "scheduler" / "scheduler_config.json").write_text(json.dumps(said))
    return to(folder, "base", "out.safetensors", "single")


def test_the_noise_schedule_is_made_anew_as_ldm_makes_it(tmp_path: Path) -> None:
    """The formulas are `register_schedule`'s, with NumPy's and torch's own sums and products."""
    made = values(scheduled(tmp_path))
    betas = (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).numpy()
    left = np.cumprod(1.0 - betas)
    before = np.append(1.0, left[:-1])
    variance = betas * (1.0 - before) / (1.0 - left)
    due = {
        "betas": betas,
        "alphas_cumprod": left,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(left),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - left),
        "log_one_minus_alphas_cumprod": np.log(1.0 - left),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / left),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / left - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1.0 - left),
        "posterior_mean_coef2": (1.0 - before) * np.sqrt(1.0 - betas) / (1.0 - left),
    }
    assert due.keys() == {*SCHEDULE}
    for name, array in due.items():
        assert made[name].dtype is torch.float32
        np.testing.assert_array_max_ulp(made[name].numpy(), array.astype(np.float32), 1)
    b.assert_right(verify(tmp_path / "recipe.yaml", options=WEIGHTS[0]))


@pytest.mark.parametrize(
    ("config", "markers", "has_schedule"),
    [
        ({}, set(), True),
        ({"prediction_type": "v_prediction"}, {"v_pred"}, True),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"}, False),
        ({"rescale_betas_zero_snr": True}, set(), False),
        ({"beta_schedule": "linear"}, set(), False),
        ({"trained_betas": [0.1, 0.2]}, set(), False),
        ({"beta_end": "0.012"}, set(), False),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_markers_are_made_anew_as_the_scheduler_says(
    tmp_path: Path, config: dict[str, object], markers: set[str], has_schedule: bool
) -> None:
    made = values(scheduled(tmp_path, **config))
    assert made.keys() & {"v_pred", "ztsnr"} == markers
    assert all(made[name].shape == (0,) for name in markers)
    assert made.keys() & {*SCHEDULE} == ({*SCHEDULE} if has_schedule else set())


def test_a_changed_schedule_is_found(tmp_path: Path) -> None:
    path = scheduled(tmp_path)
    tensors, metadata = load_file(path), b.header(path)[1]
    tensors["alphas_cumprod"][3] += 0.1
    save_file(tensors, path, metadata)
    found = verify(tmp_path / "recipe.yaml", options=VerifyOptions(stages=["structure"]))
    assert ("structure.made_anew", "alphas_cumprod") in {
        (each.check, each.subject) for each in found.findings if each.status is Status.FAIL
    }


def test_a_file_that_becomes_a_file_keeps_what_is_of_no_network(tmp_path: Path) -> None:
    """A script's file with diffusers' names below `unet.` gets the maker's names; its markers stay."""
    folder = b.sd1_folder(tmp_path / "base")
    script = {f"unet.{key}": tensor for key, tensor in folder["unet"].items()}
    script |= {f"te.{key}": tensor for key, tensor in folder["text_encoder"].items()}
    script |= {f"vae.{key}": tensor for key, tensor in folder["vae"].items()}
    script |= {"v_pred": torch.empty(0), "something.of.a.script": torch.ones(2)}
    b.save(tmp_path / "script.safetensors", script)
    made = values(to(tmp_path, "script.safetensors", "out.safetensors", "single"))
    assert {"v_pred", "something.of.a.script", b.SD1_KEYS[b.Q]} <= made.keys()
    b.assert_right(verify(tmp_path / "recipe.yaml", options=WEIGHTS[0]))


# -- around it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["diffusers", "single"])
def test_a_second_bake_finds_its_own_output(tmp_path: Path, layout: str) -> None:
    recipe = baked_into(tmp_path, "sd1", layout)
    before = b.tree(tmp_path)
    b.run(recipe)  # without overwrite: what is there is this very bake
    assert b.tree(tmp_path) == before


@pytest.mark.parametrize("layout", ["diffusers", "single"])
def test_an_output_tells_its_own_recipe(tmp_path: Path, layout: str) -> None:
    recipe = baked_into(tmp_path, "sdxl", layout)
    path = plan(load_recipe(recipe)).path
    recipe.unlink()
    b.assert_right(verify(embedded_recipe(path), path, options=WEIGHTS[1]))


def test_layouts_are_baked_side_by_side(tmp_path: Path) -> None:
    """Several outputs of one base read it once, whatever their layouts."""
    baked_into(tmp_path, "sdxl", "diffusers")
    outputs = ({"path": "one.safetensors"}, {"path": "two", "layout": "diffusers"})
    recipes = [
        load_recipe(b.recipe(tmp_path, base="base.safetensors", loras=["lora.safetensors"], output=output))
        for output in outputs
    ]
    one, two = bake_together(recipes, RunOptions(device="cpu", workers=2))
    assert_equal(values(two.path), values(tmp_path / "out"))
    b.run(
        b.recipe(tmp_path, base="base.safetensors", loras=["lora.safetensors"], output={"path": "alone.safetensors"})
    )
    assert b.tensor_bytes(one.path) == b.tensor_bytes(tmp_path / "alone.safetensors")


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path, workers: int) -> None:
    recipe = baked_into(tmp_path, "sdxl", "single")
    first = b.sha256(plan(load_recipe(recipe)).path)
    assert b.sha256(b.run(recipe, overwrite=True, workers=workers).path) == first


@pytest.mark.parametrize("stage", ["weights", "quick"])
def test_an_added_part_is_compared_with_the_file_that_it_comes_from(tmp_path: Path, stage: str) -> None:
    base = {key: tensor for key, tensor in b.sd1().items() if not key.startswith("first_stage_model.")}
    b.save(tmp_path / "base.safetensors", base)
    b.sd1_folder(tmp_path / "other")
    output = {"path": "out", "layout": "diffusers", "parts": {"vae": "other/vae"}}
    recipe = b.recipe(tmp_path, base="base.safetensors", loras=[], output=output)
    b.run(recipe)
    options = VerifyOptions(stages=[stage])
    b.assert_right(verify(recipe, options=options))
    (path,) = (tmp_path / "out" / "vae").glob("*.safetensors")
    tensors, metadata = load_file(path), b.header(path)[1]
    tensors["decoder.mid_block.attentions.0.to_q.weight"][1, 1] += 1
    save_file(tensors, path, metadata)
    assert not verify(recipe, options=options).is_true
