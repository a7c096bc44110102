"""lorabake's bake of a pipeline's folder or single file equals diffusers' load_lora_weights and fuse_lora."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")

from diffusers.training_utils import _collate_lora_metadata  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from lorabake.keymap.expansion import KeyMap  # noqa: E402
from lorabake.sources.family import identify  # noqa: E402
from lorabake.tensors.checkpoint import open_checkpoint  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # a second LoRA
]

STRENGTHS = (-1.0, 0.0, 0.3, 0.5, 1.0, 2.0)
LIMIT = 4.0
HALF_LIMIT = 0.51
FAMILIES = ["sd1", "sd2", "sdxl"]
ENCODERS = {"sd1": ["text_encoder"], "sd2": ["text_encoder"], "sdxl": ["text_encoder", "text_encoder_2"]}

# Targets of a LoRA on the UNet, by regular expression over its module paths.
ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
EVERYTHING = (
    r"conv_in|conv_out|time_embedding\.linear_[12]|.*\.(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|"
    r"ff\.net\.2|conv1|conv2|conv_shortcut|time_emb_proj|downsamplers\.0\.conv|upsamplers\.0\.conv)"
)
TEXT = r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


# -- tiny pipelines ----------------------------------------------------------------------------------------


def text_encoder(cls: str, hidden: int, projection: int, layers: int) -> Any:
    return getattr(transformers, cls)(
        transformers.CLIPTextConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            projection_dim=projection,
            max_position_embeddings=16,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def make_pipeline(family: str) -> Any:
    """Build a pipeline with random values everywhere, as narrow as its family's shape allows."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=16,
    )
    unet: dict[str, Any] = {"sample_size": 8, "norm_num_groups": 4, "use_linear_projection": family != "sd1"}
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    parts = {"vae": vae, "tokenizer": None, "scheduler": scheduler, "feature_extractor": None}
    if family == "sdxl":
        unet |= {
            "block_out_channels": (8, 16, 24),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 3),
            "attention_head_dim": (2, 4, 4),
            "cross_attention_dim": 72,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,
        }
        parts |= {
            "text_encoder": text_encoder("CLIPTextModel", 32, 32, 2),
            # the converter knows it by its tenth layer; its projection is not square, so that a transpose shows
            "text_encoder_2": text_encoder("CLIPTextModelWithProjection", 40, 24, 10),
            "tokenizer_2": None,
        }
        cls = diffusers.StableDiffusionXLPipeline
    else:
        unet |= {
            "block_out_channels": (8, 16, 16, 24),
            "attention_head_dim": 4 if family == "sd1" else (2, 4, 4, 6),
            "cross_attention_dim": 32,
        }
        parts |= {"text_encoder": text_encoder("CLIPTextModel", 32, 32, 3)}
        parts |= {"safety_checker": None, "requires_safety_checker": False}
        cls = diffusers.StableDiffusionPipeline
    pipeline = cls(unet=diffusers.UNet2DConditionModel(**unet), **parts)
    with torch.no_grad():
        for name in ("unet", "vae", *ENCODERS[family]):
            for parameter in getattr(pipeline, name).parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return pipeline


ABSENT = {
    "sd1": ["tokenizer", "feature_extractor", "safety_checker", "image_encoder"],
    "sd2": ["tokenizer", "feature_extractor", "safety_checker", "image_encoder"],
    "sdxl": ["tokenizer", "tokenizer_2", "feature_extractor", "image_encoder"],
}
CLASSES = {"sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}


def load_pipeline(family: str, folder: Path) -> Any:
    """Load a pipeline in the dtype that it was saved in."""
    return copy.deepcopy(_load_pipeline(family, folder))


@cache
def _load_pipeline(family: str, folder: Path) -> Any:
    none = dict.fromkeys(ABSENT[family])
    dtype = load_file(next(folder.glob("unet/*.safetensors")))["conv_in.weight"].dtype
    return getattr(diffusers, CLASSES[family]).from_pretrained(folder, torch_dtype=dtype, **none)


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family's tiny pipeline."""

    @cache
    def folder(family: str) -> Path:
        path = tmp_path_factory.mktemp(family) / "base"
        make_pipeline(family).save_pretrained(path)
        return path

    return folder


def parts_of(pipeline: Any) -> dict[str, Any]:
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {name: getattr(pipeline, name) for name in names if getattr(pipeline, name, None) is not None}


def tensors_of(pipeline: Any) -> dict[str, torch.Tensor]:
    """Return a pipeline's tensors as its folder names them; adapters out of the names."""
    return {
        f"{name}/{key.replace('.base_layer.', '.')}": tensor
        for name, part in parts_of(pipeline).items()
        for key, tensor in part.state_dict().items()
        if ".lora_" not in key
    }


def run_unet(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    width = unet.config.cross_attention_dim
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 5, width, generator=generator)
    added = {"text_embeds": torch.randn(2, 24, generator=generator), "time_ids": torch.arange(12.0).reshape(2, 6)}
    more = {"added_cond_kwargs": {k: v.to(unet.dtype) for k, v in added.items()}} if width == 72 else {}
    with torch.no_grad():
        return unet(sample.to(unet.dtype), 3, text.to(unet.dtype), **more).sample


# -- LoRAs -------------------------------------------------------------------------------------------------


def train(
    family: str,
    base: Path,
    folder: Path,
    shuffle: Any,
    targets: str = ATTENTION,
    seed: int = 1,
    metadata: bool = True,
    components: Iterable[str] = ("unet", "text_encoder", "text_encoder_2"),
    **config: Any,
) -> Path:
    """Put LoRAs on a pipeline as diffusers' training scripts do, and save them as those do."""
    torch.manual_seed(seed)
    pipeline = load_pipeline(family, base)
    layers, adapted = {}, {}
    for name in components:
        part = getattr(pipeline, name, None)
        if part is None or name == "vae":
            continue
        values = {"r": 4, "lora_alpha": 6, "target_modules": targets if name == "unet" else TEXT} | config
        part.add_adapter(peft.LoraConfig(**values))
        shuffle(((n, p) for n, p in part.named_parameters() if "lora_" in n), seed)
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(part)
        adapted[name] = part
    facts = _collate_lora_metadata(adapted) if metadata else {}
    type(pipeline).save_lora_weights(folder, **layers, **facts)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def lora_of(base_of: Any, shuffle: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a family's LoRA on every layer of the UNet and the text encoders."""

    @cache
    def lora(family: str) -> Path:
        return train(family, base_of(family), tmp_path_factory.mktemp(family), shuffle, EVERYTHING)

    return lora


def restore_magnitudes(pipeline: Any, adapter: str, path: Path) -> None:
    """Give text encoders the DoRA magnitudes that diffusers 0.42.1 with transformers 5.23 loses.

    load_lora_weights hands them to transformers' load_adapter, which reports them as missing and goes on with
    the base's own lengths, so that the fused text encoder is not the trained one.
    """
    for key, tensor in load_file(path).items():
        component, _, module = key.removesuffix(".lora_magnitude_vector").partition(".")
        if key.endswith(".lora_magnitude_vector") and component.startswith("text_encoder"):
            layer = getattr(pipeline, component).get_submodule(module)
            with torch.no_grad():
                layer.lora_magnitude_vector[adapter].weight.copy_(tensor)


def fuse(family: str, base: Path, loras: dict[str, tuple[Path, float]]) -> Any:
    """Fuse LoRAs in float64, each with its weight; return the pipeline."""
    pipeline = load_pipeline(family, base).to(torch.float64)
    for name, (path, _) in loras.items():
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
        restore_magnitudes(pipeline, name, path)
    pipeline.set_adapters(list(loras), [weight for _, weight in loras.values()])
    parts = [name for name in ("unet", *ENCODERS[family]) if getattr(getattr(pipeline, name), "peft_config", None)]
    pipeline.fuse_lora(components=parts, adapter_names=list(loras))
    return pipeline


@pytest.fixture
def compare(bake: Any, read: Any, assert_baked: Any, base_of: Any) -> Callable[..., Path]:
    """Fuse with diffusers, bake with lorabake, compare every tensor; return the baked folder."""

    def run(family: str, *loras: tuple[Path, float], base: Path | None = None, **check: Any) -> Path:
        base = base or base_of(family)
        fused = fuse(family, base, {f"lora{i}": lora for i, lora in enumerate(loras)})
        baked = bake(base, *({"path": str(path), "strength": strength} for path, strength in loras))
        assert_baked(read(baked), tensors_of(fused), read(base), **{"limit": LIMIT} | check)
        return baked

    return run


# -- diffusers' folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_and_run_time(family: str, compare: Any, base_of: Any, lora_of: Any) -> None:
    lora = lora_of(family)
    baked = load_pipeline(family, compare(family, (lora, 1.0)))
    live = load_pipeline(family, base_of(family))
    plain = run_unet(live.unet)
    live.load_lora_weights(lora.parent)
    wanted = run_unet(live.unet)
    assert (wanted - plain).abs().max() > 1e-2
    assert torch.allclose(run_unet(baked.unet), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_two_loras_with_weights(
    family: str, compare: Any, base_of: Any, lora_of: Any, shuffle: Any, tmp_path: Path
) -> None:
    two = train(family, base_of(family), tmp_path / "two", shuffle, seed=2, r=3, lora_alpha=1, use_rslora=True)
    compare(family, (lora_of(family), 0.7), (two, -0.4))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_ranks_and_alphas_by_pattern(family: str, compare: Any, base_of: Any, shuffle: Any, tmp_path: Path) -> None:
    lora = train(
        family,
        base_of(family),
        tmp_path / "lora",
        shuffle,
        components=["unet"],
        rank_pattern={r"attn2\.to_k": 2, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": 7},
        alpha_pattern={"to_v": 9, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": 0.5},
    )
    compare(family, (lora, 0.5))


def test_a_models_own_adapter_says_its_scale_without_a_component(
    base_of: Any, bake: Any, read: Any, assert_baked: Any, shuffle: Any, tmp_path: Path
) -> None:
    """`save_lora_adapter` writes neither the component nor a prefix into the names."""
    base = base_of("sd1")
    unet = load_pipeline("sd1", base).unet
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=ATTENTION, use_rslora=True, alpha_pattern={"attn1.to_q": 9}
    )
    unet.add_adapter(config)
    shuffle((name, parameter) for name, parameter in unet.named_parameters() if "lora_" in name)
    unet.save_lora_adapter(tmp_path / "lora")
    unet.to(torch.float64).fuse_lora()
    fused = {
        "unet/" + key.replace(".base_layer", ""): tensor
        for key, tensor in unet.state_dict().items()
        if ".lora_" not in key
    }
    before, after = read(base), read(bake(base, tmp_path / "lora"))
    own = {key for key in before if key.startswith("unet/")}
    assert_baked(*({key: each[key] for key in own} for each in (after, fused, before)), limit=LIMIT)


def test_without_metadata_scale_is_one(compare: Any, base_of: Any, shuffle: Any, tmp_path: Path) -> None:
    lora = train("sd1", base_of("sd1"), tmp_path / "lora", shuffle, metadata=False)
    compare("sd1", (lora, 1.0))


@pytest.mark.parametrize(("family", "dtype"), [("sd1", torch.float16), ("sdxl", torch.bfloat16)], ids=str)
def test_half_precision_is_rounded_once(
    family: str, dtype: torch.dtype, compare: Any, base_of: Any, lora_of: Any, tmp_path: Path
) -> None:
    load_pipeline(family, base_of(family)).to(dtype).save_pretrained(tmp_path / "base")
    compare(family, (lora_of(family), 0.8), base=tmp_path / "base", limit=HALF_LIMIT)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_dora(family: str, compare: Any, base_of: Any, shuffle: Any, tmp_path: Path) -> None:
    lora = train(family, base_of(family), tmp_path / "lora", shuffle, EVERYTHING, use_dora=True)
    compare(family, (lora, 1.0))


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_a_weight_of_diffusers_is_a_strength(
    use_dora: bool, bake: Any, read: Any, assert_baked: Any, base_of: Any, shuffle: Any, tmp_path: Path
) -> None:
    """A LoRA's is the same to both. DoRA goes `strength` of the way from W to W', as in AUTOMATIC1111.

    PEFT scales Δ inside the norm instead and still gives each row its full trained length, so that its weight 0
    is not the base: that is what `semantics: peft` bakes.
    """
    base = base_of("sd1")
    lora = train("sd1", base, tmp_path / "lora", shuffle, use_dora=use_dora)
    before, pipeline = read(base), load_pipeline("sd1", base).to(torch.float64)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="lora")
    restore_magnitudes(pipeline, "lora", lora)
    fused = {}
    for strength in STRENGTHS:
        pipeline.set_adapters(["lora"], [strength])
        pipeline.fuse_lora(components=["unet", "text_encoder"], adapter_names=["lora"])
        fused[strength] = {key: tensor.clone() for key, tensor in tensors_of(pipeline).items()}
        pipeline.unfuse_lora(components=["unet", "text_encoder"])
    for number, strength in enumerate(STRENGTHS):
        expected = {key: before[key].double() + strength * (fused[1.0][key] - before[key].double()) for key in before}
        by_law = [(None, expected), *([("peft", fused[strength])] if use_dora else [])]
        for semantics, wanted in by_law:
            entry = {"path": str(lora), "strength": strength} | ({"semantics": semantics} if semantics else {})
            baked = read(bake(base, entry, output=f"{semantics}{number}"))
            if strength or semantics:
                assert_baked(baked, wanted, before, limit=LIMIT)
            else:
                assert all(torch.equal(baked[key], before[key]) for key in before)
        if not use_dora:
            torch.testing.assert_close(fused[strength], expected, rtol=1e-9, atol=1e-12)


# -- spellings of older trainers, read by diffusers' own converters -----------------------------------------


def random_lora(
    family: str, base: Path, targets: str, write: Callable[[str, str], dict[str, str]], *, alpha: float | None
) -> dict[str, torch.Tensor]:
    """Make a LoRA's tensors by hand; `write` spells (component, module) as slot -> key, or nothing."""
    pipeline = load_pipeline(family, base)
    generator = torch.Generator().manual_seed(7)
    found: dict[str, torch.Tensor] = {}
    for component in ("unet", *ENCODERS[family]):
        for path, layer in getattr(pipeline, component).named_modules():
            pattern = targets if component == "unet" else TEXT
            keys = write(component, path) if re.fullmatch(pattern, path) else {}
            if not keys:
                continue
            out, into, *kernel = layer.weight.shape
            shapes = {"down": (3, into, *kernel), "up": (out, 3, *(1 for _ in kernel))}
            for slot, shape in shapes.items():
                found[keys[slot]] = 0.2 * torch.randn(shape, generator=generator)
            if alpha is not None:
                found[keys["alpha"]] = torch.tensor(alpha)
    return found


def attention_processor(component: str, path: str) -> dict[str, str]:
    if component == "unet":
        block, _, layer = path.partition(".attn")
        number, _, layer = layer.partition(".")
        stem = f"unet.{block}.attn{number}.processor.{layer.removesuffix('.0')}_lora"
    elif ".self_attn." in path:
        wrapped = path if path.startswith("text_model.") else f"text_model.{path}"
        head, _, layer = wrapped.rpartition(".")
        stem = f"{component}.{head}.to_{layer.removesuffix('_proj')}_lora"
    else:
        return {}
    return {"down": f"{stem}.down.weight", "up": f"{stem}.up.weight"}


def lora_linear_layer(component: str, path: str) -> dict[str, str]:
    if component != "unet" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    stem = f"{component}.{path}.lora_linear_layer" if component != "unet" else f"{component}.{path}.lora"
    return {"down": f"{stem}.down.weight", "up": f"{stem}.up.weight"}


def kohya(component: str, path: str) -> dict[str, str]:
    if component != "unet" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}[component]
    stem = f"{prefix}_{path.replace('.', '_')}"
    return {"down": f"{stem}.lora_down.weight", "up": f"{stem}.lora_up.weight", "alpha": f"{stem}.alpha"}


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_processors(family: str, compare: Any, base_of: Any, tmp_path: Path) -> None:
    tensors = random_lora(family, base_of(family), ATTENTION, attention_processor, alpha=None)
    save_file(tensors, tmp_path / "lora.safetensors")
    compare(family, (tmp_path / "lora.safetensors", 0.6), changed=len(tensors) // 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_linear_layers(family: str, compare: Any, base_of: Any, tmp_path: Path) -> None:
    tensors = random_lora(family, base_of(family), ATTENTION, lora_linear_layer, alpha=None)
    save_file(tensors, tmp_path / "lora.safetensors")
    compare(family, (tmp_path / "lora.safetensors", 0.6), changed=len(tensors) // 2)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_kohya(family: str, compare: Any, base_of: Any, tmp_path: Path) -> None:
    targets = rf"{ATTENTION}|.*\.(proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|time_emb_proj)"
    tensors = random_lora(family, base_of(family), targets, kohya, alpha=2.0)
    save_file(tensors, tmp_path / "lora.safetensors")
    compare(family, (tmp_path / "lora.safetensors", 0.9), changed=len(tensors) // 3)


# -- single files: lorabake's table writes the names, diffusers' converter reads them -----------------------

SINGLE_UNET = r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\."
SINGLE_VAE = r"((encoder|decoder)\.(conv_in|conv_out|norm_out|down|up|mid)\b|quant_conv|post_quant_conv)"
OPENCLIP = r"(transformer\.resblocks\.|token_embedding|positional_embedding|ln_final|text_projection)"
# component -> (prefix in the file, the names that its layout has there)
SINGLE: dict[str, dict[str, tuple[str, str]]] = {
    "sd1": {
        "unet": ("model.diffusion_model.", SINGLE_UNET),
        "text_encoder": ("cond_stage_model.transformer.", r"text_model\."),
        "vae": ("first_stage_model.", SINGLE_VAE),
    },
    "sd2": {
        "unet": ("model.diffusion_model.", SINGLE_UNET),
        "text_encoder": ("cond_stage_model.model.", OPENCLIP),
        "vae": ("first_stage_model.", SINGLE_VAE),
    },
    "sdxl": {
        "unet": ("model.diffusion_model.", SINGLE_UNET),
        "text_encoder": ("conditioner.embedders.0.transformer.", r"text_model\."),
        "text_encoder_2": ("conditioner.embedders.1.model.", OPENCLIP),
        "vae": ("first_stage_model.", SINGLE_VAE),
    },
}


def write_single_file(family: str, folder: Path, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a folder's tensors under the names of the single-file layout, by lorabake's table."""
    header = open_checkpoint(folder).tensors
    key_map = KeyMap.expand(identify(header), header)
    assert key_map.architecture.name == family
    single: dict[str, torch.Tensor] = {}
    for component, (prefix, names) in SINGLE[family].items():
        for name, module in key_map.modules[component].items():
            if not re.match(names, name) or re.search(r"(in_proj(\.\d)?|to_q?kv|qkv_proj)$", name):  # others' rows
                continue
            for parameter, view in module.views.items():
                value = view.read(tensors)
                if component == "vae" and re.search(r"\.attn_1\.(q|k|v|proj_out)$", name) and value.ndim == 2:
                    value = value[:, :, None, None]  # 1×1 convolutions there
                if name == "text_projection":
                    value = value.T
                bare = re.search(r"(\A|\.)(positional_embedding|text_projection|in_proj_(weight|bias))$", name)
                single[prefix + (name if bare else f"{name}.{parameter}")] = value.clone()
    assert sum(value.numel() for value in single.values()) == sum(value.numel() for value in tensors.values())
    save_file({key: value.contiguous() for key, value in single.items()}, path)


@pytest.fixture
def single_file(base_of: Any, read: Any, tmp_path: Path) -> Callable[[str], Path]:
    def write(family: str) -> Path:
        path = tmp_path / "single.safetensors"
        write_single_file(family, base_of(family), read(base_of(family)), path)
        return path

    return write


def load_single_file(family: str, path: Path, config: Path) -> Any:
    none = dict.fromkeys(ABSENT[family])
    cls = getattr(diffusers, CLASSES[family])
    return cls.from_single_file(
        str(path), config=str(config), local_files_only=True, torch_dtype=torch.float32, **none
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_single_file(
    family: str,
    single_file: Any,
    bake: Any,
    read: Any,
    assert_baked: Any,
    base_of: Any,
    lora_of: Any,
) -> None:
    base, single = base_of(family), single_file(family)
    before = tensors_of(load_single_file(family, single, base))
    for key, tensor in read(base).items():
        assert torch.equal(before[key], tensor), key  # the table is diffusers' own, key by key
    fused = fuse(family, base, {"lora": (lora_of(family), 0.8)})
    baked = bake(single, {"path": str(lora_of(family)), "strength": 0.8}, output="baked.safetensors")
    after = load_single_file(family, baked, base)
    assert_baked(tensors_of(after), tensors_of(fused), before, limit=LIMIT)
    wanted = run_unet(fused.unet.float())
    assert torch.allclose(run_unet(after.unet), wanted, atol=1e-4, rtol=1e-4)


def test_single_file_and_dora(
    single_file: Any,
    bake: Any,
    read: Any,
    assert_baked: Any,
    base_of: Any,
    shuffle: Any,
    tmp_path: Path,
) -> None:
    """SD 2: three DoRAs on one fused q, k and v of OpenCLIP."""
    base, single = base_of("sd2"), single_file("sd2")
    lora = train("sd2", base, tmp_path / "lora", shuffle, use_dora=True)
    fused = tensors_of(fuse("sd2", base, {"lora": (lora, 1.0)}))
    baked = bake(single, lora, output="baked.safetensors")
    after = tensors_of(load_single_file("sd2", baked, base))
    assert_baked(after, fused, read(base), limit=LIMIT)


def sgm(component: str, path: str) -> dict[str, str]:
    """Spell as kohya's SDXL trainer does: the UNet's blocks by the names of the single file."""
    if component != "unet":
        return {slot: key.replace("lora_te_", "lora_te1_") for slot, key in kohya(component, path).items()}
    match = re.match(r"(down|up|mid)_block(?:s\.(\d))?\.attentions\.(\d)\.(.*)", path)
    if match is None:
        return {}
    side, level, number, rest = match.groups()
    block = {
        "down": lambda: f"input_blocks_{1 + 3 * int(level) + int(number)}_1",
        "up": lambda: f"output_blocks_{3 * int(level) + int(number)}_1",
        "mid": lambda: "middle_block_1",
    }[side]()
    stem = f"lora_unet_{block}_{rest.replace('.', '_')}"
    return {"down": f"{stem}.lora_down.weight", "up": f"{stem}.lora_up.weight", "alpha": f"{stem}.alpha"}


@pytest.mark.parametrize("single", [False, True], ids=["folder", "single"])
def test_kohya_on_sdxl(
    single: bool, single_file: Any, bake: Any, read: Any, assert_baked: Any, base_of: Any, tmp_path: Path
) -> None:
    base, lora = base_of("sdxl"), tmp_path / "lora.safetensors"
    targets = rf"{ATTENTION}|.*\.(proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)"
    tensors = random_lora("sdxl", base, targets, sgm, alpha=2.0)
    save_file(tensors, lora)
    fused = tensors_of(fuse("sdxl", base, {"lora": (lora, 0.9)}))
    entry = {"path": str(lora), "strength": 0.9}
    if single:
        baked = bake(single_file("sdxl"), entry, output="baked.safetensors")
        after = tensors_of(load_single_file("sdxl", baked, base))
    else:
        after = read(bake(base, entry))
    assert_baked(after, fused, read(base), limit=LIMIT, changed=len(tensors) // 3)


@pytest.mark.parametrize("single", [False, True], ids=["folder", "single"])
def test_text_projection(
    single: bool, single_file: Any, bake: Any, read: Any, assert_baked: Any, base_of: Any, tmp_path: Path
) -> None:
    """OpenCLIP stores the projection as (in, out): a LoRA has to be turned, and diffusers turns it back.

    diffusers loads no LoRA on it, so the product is the oracle.
    """
    base, lora, key = base_of("sdxl"), tmp_path / "lora.safetensors", "text_encoder_2/text_projection.weight"
    generator = torch.Generator().manual_seed(3)
    up, down = torch.randn(24, 2, generator=generator), torch.randn(2, 40, generator=generator)
    save_file(
        {"lora_te2_text_projection.lora_up.weight": up, "lora_te2_text_projection.lora_down.weight": down}, lora
    )
    before = read(base)
    if single:
        after = tensors_of(
            load_single_file("sdxl", bake(single_file("sdxl"), lora, output="baked.safetensors"), base)
        )
    else:
        after = read(bake(base, lora))
    expected = before | {key: before[key].double() + up.double() @ down.double()}
    assert_baked(after, expected, before, limit=LIMIT, changed=1)
