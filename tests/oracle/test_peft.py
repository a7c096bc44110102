"""lorabake's bake of a saved model and a saved PEFT folder equals PEFT's own merge, computed in float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from safetensors.torch import save_file  # noqa: E402

from lorabake import VerifyOptions, load_recipe, verify  # noqa: E402
from lorabake.errors import LorabakeError  # noqa: E402

# Correct rounding of float16 and bfloat16 is 0.5; float32 sums decide a few ties otherwise.
LIMITS = {torch.float32: 4.0, torch.float16: 0.51, torch.bfloat16: 0.51}
EXACT = 0.501
STRENGTHS = (-1.0, 0.0, 0.3, 0.5, 1.0, 2.0)

DECODER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
}
BERT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CLIP = {**BERT, "projection_dim": 24, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MOE = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
DEEPSEEK = {
    "n_routed_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}

LLAMA4 = DECODER | {
    "intermediate_size_mlp": 48,
    "head_dim": 8,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 0],
    "layer_types": ["full_attention"] * 2,
}
LLAMA4_VISION = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
    "vision_output_dim": 16,
    "pixel_shuffle_ratio": 1.0,
}

# model -> (class, config class, config, number of linear layers that "all-linear" reaches)
MODELS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", DECODER, 14),
    "mistral": ("MistralForCausalLM", "MistralConfig", DECODER, 14),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", DECODER, 14),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", DECODER | {"head_dim": 16}, 14),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", DECODER | {"head_dim": 16, "tie_word_embeddings": True}, 14),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, 8),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, 36),
    "bert": ("BertForSequenceClassification", "BertConfig", BERT, 14),
    "clip": ("CLIPTextModel", "CLIPTextConfig", CLIP, 12),
    "clip_projection": ("CLIPTextModelWithProjection", "CLIPTextConfig", CLIP, 13),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", DECODER, 8),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", DECODER, 8),
    "falcon": ("FalconForCausalLM", "FalconConfig", DECODER | {"new_decoder_architecture": False}, 8),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", DECODER, 14),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", DECODER, 12),
    "granite": ("GraniteForCausalLM", "GraniteConfig", DECODER, 14),
    "cohere": ("CohereForCausalLM", "CohereConfig", DECODER, 14),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", DECODER, 14),
    "nemotron": ("NemotronForCausalLM", "NemotronConfig", DECODER, 12),
    "glm": ("GlmForCausalLM", "GlmConfig", DECODER | {"head_dim": 8}, 12),
}


# Models that PEFT merges, and that cannot be run in float64 or that "all-linear" does not suit: with their targets.
SPARSE: dict[str, tuple[str, str, dict[str, Any], list[str]]] = {
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        DECODER | {"state_size": 4, "time_step_rank": 2},
        ["in_proj", "x_proj"],
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", DECODER | {"num_local_experts": 2}, ["q_proj", "o_proj"]),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", DECODER | MOE, ["q_proj", "o_proj"]),
    "deepseek": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        DECODER | MOE | DEEPSEEK,
        ["q_a_proj", "kv_b_proj", "o_proj"],
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", DECODER | MOE, ["q_proj", "o_proj"]),
    "phimoe": ("PhimoeForCausalLM", "PhimoeConfig", DECODER | {"num_local_experts": 2}, ["q_proj", "router"]),
    "minimax": (
        "MiniMaxForCausalLM",
        "MiniMaxConfig",
        DECODER | {"num_local_experts": 2, "layer_types": ["full_attention"] * 2},
        ["q_proj", "gate"],
    ),
    "jamba": (
        "JambaForCausalLM",
        "JambaConfig",
        DECODER
        | {"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4}
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
        ["q_proj", "o_proj", "in_proj", "x_proj"],
    ),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", LLAMA4, ["q_proj", "o_proj"]),
    "llama4_vision": (
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        {"text_config": LLAMA4, "vision_config": LLAMA4_VISION},
        ["q_proj", "fc1"],
    ),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"image_size": 28, "patch_size": 14},
        ["q_proj", "v_proj", "o_proj", "fc1", "fc2"],
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        DECODER | {"num_local_experts": 2, "head_dim": 8},
        ["q_proj", "o_proj"],
    ),
}


def build(name: str) -> Any:
    """Make a model with random values everywhere: also in biases and norms, which start as 0 and 1."""
    cls, config, values, *_ = SPARSE[name] if name in SPARSE else MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, cls)(getattr(transformers, config)(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def outputs(model: Any) -> torch.Tensor:
    ids = torch.arange(1, 17).reshape(2, 8) % 64
    more = {"decoder_input_ids": ids.flip(1)} if model.config.model_type == "t5" else {}
    with torch.no_grad():
        return model(input_ids=ids, **more)[0]


@pytest.fixture
def merge(tmp_path: Path, bake: Any, read: Any, assert_baked: Any, shuffle: Any) -> Callable[..., None]:
    """Save a model and an adapter, merge with PEFT and with lorabake, and compare weights and outputs."""

    def run(
        model: Any,
        config: Any,
        *,
        dtype: torch.dtype = torch.float32,
        changed: int | None = None,
        limit: float | None = None,
        save: dict[str, Any] | None = None,
        train_biases: bool = False,
        **recipe: Any,
    ) -> None:
        base, adapter, oracle = tmp_path / "base", tmp_path / "adapter", tmp_path / "oracle"
        cls = type(model)
        model.to(dtype).save_pretrained(base, **(save or {}))
        trained = peft.get_peft_model(model.float(), config)
        shuffle((n, p) for n, p in trained.named_parameters() if "lora_" in n or "modules_to_save" in n)
        if train_biases:
            shuffle((n, p) for n, p in trained.named_parameters() if n.endswith("bias") and p.requires_grad)
        trained.save_pretrained(adapter)

        saved = cls.from_pretrained(base, dtype=torch.float64)
        loaded = peft.PeftModel.from_pretrained(saved, adapter).double().eval()
        wanted = outputs(loaded)
        merged = loaded.merge_and_unload()
        merged.save_pretrained(oracle)

        baked = bake(base, adapter, **recipe)
        worst_allowed = LIMITS[dtype] if limit is None else limit
        assert_baked(read(baked), read(oracle), read(base), limit=worst_allowed, changed=changed)
        result, report = cls.from_pretrained(baked, dtype=torch.float32, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        close = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}[dtype]
        assert torch.allclose(outputs(result.eval()).double(), wanted, atol=close, rtol=close)

    return run


def lora(**values: Any) -> Any:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear"} | values)


def turned(name: str) -> dict[str, bool]:
    return {"fan_in_fan_out": True} if name == "gpt2" else {}


@pytest.mark.parametrize("name", MODELS)
def test_plain_lora_on_all_linear_layers(name: str, merge: Any) -> None:
    merge(build(name), lora(**turned(name)), changed=MODELS[name][3])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPARSE)
def test_mixtures_of_experts_and_mamba(name: str, bake: Any, read: Any, tmp_path: Path) -> None:
    """Experts lie apart on the disk and fused in memory; what is beside them has one name."""
    model = build(name).float()
    model.save_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(model, lora(target_modules=SPARSE[name][3], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    before, wanted = read(tmp_path / "base"), read(tmp_path / "merged")
    after = read(bake(tmp_path / "base", tmp_path / "adapter"))
    assert after.keys() == wanted.keys()
    changed = {key for key in wanted if not torch.equal(wanted[key], before[key])}
    assert len(changed) >= 4
    for key in after:
        if key in changed:
            torch.testing.assert_close(after[key], wanted[key], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(after[key], before[key])


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
FEED_FORWARD = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"target_parameters": PARAMETERS}) for name in ("mixtral", "qwen2_moe", "deepseek", "gpt_oss")),
        ("qwen3_moe", {"target_parameters": PARAMETERS}),
        ("jamba", {"target_parameters": FEED_FORWARD}),
        ("llama4", {"target_parameters": FEED_FORWARD}),
        ("llama4_vision", {"target_parameters": FEED_FORWARD, "target_modules": ["q_proj"]}),
        *((name, {"target_parameters": PARAMETERS[1:]}) for name in ("mixtral", "deepseek", "gpt_oss")),
        ("mixtral", {"target_modules": ["w1", "w2", "w3"]}),  # PEFT makes patterns of ranks and alphas of these
        ("deepseek", {"target_modules": ["gate_proj", "up_proj", "down_proj"]}),
        ("deepseek", {"target_modules": ["gate_proj", "up_proj", "down_proj"], "use_rslora": True}),
    ],
    ids=str,
)
def test_loras_on_experts(name: str, options: dict[str, Any], bake: Any, read: Any, tmp_path: Path) -> None:
    """PEFT trains the stack that transformers has in memory; the disk has the experts apart, or the stack turned."""
    model = build(name).float()
    model.save_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(model, lora(**{"target_modules": ["o_proj"], "init_lora_weights": False} | options))
    tuned.save_pretrained(tmp_path / "adapter")
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    before, wanted = read(tmp_path / "base"), read(tmp_path / "merged")
    baked = bake(tmp_path / "base", tmp_path / "adapter")
    after = read(baked)
    changed = {key for key in wanted if not torch.equal(wanted[key], before[key])}
    assert sum("experts" in key for key in changed) >= 2
    for key in after:
        if key in changed:
            torch.testing.assert_close(after[key], wanted[key], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(after[key], before[key])
    options_ = VerifyOptions(stages=("structure", "weights"))
    assert verify(load_recipe(tmp_path / "baked.yaml"), options=options_).is_true


@pytest.mark.filterwarnings("ignore")
def test_loras_on_single_experts_fit_the_disk(bake: Any, read: Any, tmp_path: Path) -> None:
    """Before transformers 5 every expert was a module of its own, as it still is on the disk."""
    build("mixtral").float().save_pretrained(tmp_path / "base")
    before = read(tmp_path / "base")
    key = "model.layers.1.block_sparse_moe.experts.1.w2"
    out, inputs = before[f"{key}.weight"].shape
    up, down = torch.randn(out, 4), torch.randn(4, inputs)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(
        {f"base_model.model.{key}.lora_A.weight": down, f"base_model.model.{key}.lora_B.weight": up},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    after = read(bake(tmp_path / "base", folder))
    torch.testing.assert_close(after[f"{key}.weight"], before[f"{key}.weight"] + 2 * up @ down, rtol=1e-5, atol=1e-5)
    assert {each for each in after if not torch.equal(after[each], before[each])} == {f"{key}.weight"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "clip"])
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype, merge: Any) -> None:
    merge(build(name), lora(**turned(name)), dtype=dtype)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "r": 3}], ids=str)
def test_float64_is_correctly_rounded(options: dict[str, Any], merge: Any) -> None:
    merge(build("llama"), lora(**options), compute_dtype="float64", limit=EXACT)


@pytest.mark.parametrize(
    "options",
    [
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 7}},
        {"alpha_pattern": {"v_proj": 1, "model.layers.0.mlp.up_proj": 11}},
        # patterns that overlap: the first match wins
        {
            "rank_pattern": {"^model.layers.0.self_attn.k_proj": 2, "layers.0.self_attn..*": 5},
            "alpha_pattern": {"up_proj": 2.5},
        },
        {"use_rslora": True, "r": 3},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 9}},
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"o_proj": 1}, "alpha_pattern": {"o_proj": 0.5}},
        {"lora_alpha": -3},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*\.(k|v)_proj", "exclude_modules": ["model.layers.0.self_attn.v_proj"]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["head"]},
        {"modules_to_save": ["lm_head", "model.norm"], "target_modules": ["q_proj"]},
        {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]},
    ],
    ids=str,
)
def test_options_of_lora_config(options: dict[str, Any], merge: Any) -> None:
    merge(build("llama"), lora(**options))


@pytest.mark.parametrize("name", ["gpt2", "t5", "bert", "clip", "qwen2"])
def test_dora_on_other_models(name: str, merge: Any) -> None:
    merge(build(name), lora(use_dora=True, **turned(name)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dora_in_half_precision_is_rounded_once(name: str, dtype: torch.dtype, merge: Any) -> None:
    merge(build(name), lora(use_dora=True, **turned(name)), dtype=dtype)


# PEFT 0.21.2 takes every 1-D tensor named lora_B for a damaged one, LoRA's bias too: a false alarm.
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")
@pytest.mark.parametrize("name", ["clip", "bert", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=str)
def test_lora_bias(name: str, options: dict[str, Any], merge: Any) -> None:
    linears = MODELS[name][3]
    merge(build(name), lora(lora_bias=True, **options, **turned(name)), changed=2 * linears)


@pytest.mark.parametrize("name", ["clip", "bert", "gpt2"])
def test_bias_all(name: str, merge: Any) -> None:
    merge(build(name), lora(bias="all", **turned(name)), train_biases=True)


def test_bias_lora_only(merge: Any) -> None:
    merge(build("qwen2"), lora(bias="lora_only", target_modules=["q_proj", "v_proj", "o_proj"]), train_biases=True)


def test_the_classifier_is_saved_whole(merge: Any) -> None:
    merge(build("bert"), lora(task_type="SEQ_CLS", target_modules=["query", "value"]), changed=2 * 2 + 2)


@pytest.mark.parametrize("compose", ["sum", "sequential"])
@pytest.mark.filterwarnings("ignore:.*embedding layers:UserWarning")
def test_the_head_and_the_embedding_as_targets(
    compose: str, bake: Any, read: Any, assert_baked: Any, shuffle: Any, tmp_path: Path
) -> None:
    model, base, adapter = build("llama"), tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    trained = peft.get_peft_model(model, lora(target_modules=["q_proj", "lm_head", "embed_tokens"]))
    shuffle((n, p) for n, p in trained.named_parameters() if "lora_" in n)
    trained.save_pretrained(adapter)
    merged, before = trained.double().merge_and_unload().state_dict(), read(base)
    for number, strength in enumerate(strength for strength in STRENGTHS if strength):
        expected = {key: before[key].double() + strength * (merged[key] - before[key].double()) for key in before}
        entry, name = {"path": str(adapter), "strength": strength}, f"baked{number}"
        path = bake(base, entry, compose=compose, output=name)
        assert_baked(read(path), expected, before, limit=LIMITS[torch.float32], changed=4)
        recipe = load_recipe(tmp_path / f"{name}.yaml")
        assert verify(recipe, path, VerifyOptions(stages=("structure", "weights"))).is_true


@pytest.mark.filterwarnings("ignore:.*embedding layers:UserWarning")
def test_what_is_saved_whole_is_whole_at_any_strength_of_pefts(
    bake: Any, read: Any, assert_baked: Any, shuffle: Any, tmp_path: Path
) -> None:
    """`set_scale` scales LoRAs alone: a classifier, trained biases and a LoRA on a saved embedding."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = build("bert")
    model.save_pretrained(base)
    config = lora(task_type="SEQ_CLS", target_modules=["query", "word_embeddings"], bias="lora_only")
    trained = peft.get_peft_model(model, config)
    shuffle((n, p) for n, p in trained.named_parameters() if p.requires_grad)
    trained.save_pretrained(adapter, save_embedding_layers=True)
    before = read(base)
    for number, strength in enumerate(STRENGTHS):
        again = build("bert")
        again.load_state_dict(before)
        scaled = peft.PeftModel.from_pretrained(again, adapter).double()
        for module in scaled.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", strength)
        merged = scaled.merge_and_unload().state_dict()
        entry, name = {"path": str(adapter), "strength": strength, "semantics": "peft"}, f"baked{number}"
        path = bake(base, entry, output=name)
        assert_baked(read(path), merged, before, limit=LIMITS[torch.float32])
        recipe = load_recipe(tmp_path / f"{name}.yaml")
        assert verify(recipe, path, VerifyOptions(stages=("structure", "weights"))).is_true


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_sharded_base(name: str, merge: Any, tmp_path: Path) -> None:
    merge(build(name), lora(**turned(name)), save={"max_shard_size": "20KB"})
    shards = sorted(path.name for path in (tmp_path / "base").glob("*.safetensors"))
    assert len(shards) > 3
    assert sorted(path.name for path in (tmp_path / "baked").glob("*.safetensors")) == shards


class Convolutions(torch.nn.Module):
    """A model of no known family with every layer that PEFT puts a plain product on."""

    def __init__(self) -> None:
        super().__init__()
        self.square = torch.nn.Conv2d(6, 10, 3, padding=1)
        self.oblong = torch.nn.Conv2d(10, 8, (1, 5))
        self.pointwise = torch.nn.Conv2d(8, 8, 1, bias=False)
        self.line = torch.nn.Conv1d(6, 9, 3)
        self.cube = torch.nn.Conv3d(4, 5, (3, 1, 2))
        self.head = torch.nn.Linear(9, 7)


LAYERS = ["square", "oblong", "pointwise", "line", "cube", "head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}, {"lora_bias": True}], ids=str)
@pytest.mark.filterwarnings("ignore:.*LoRA tensor.s. have invalid shape")
def test_convolutions(
    options: dict[str, Any],
    dtype: torch.dtype,
    bake: Any,
    read: Any,
    assert_baked: Any,
    shuffle: Any,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model = Convolutions().to(dtype)
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter"
    save_file(model.state_dict(), base)
    layers = [name for name in LAYERS if not (options.get("lora_bias") and name == "pointwise")]
    trained = peft.get_peft_model(model.float(), lora(target_modules=layers, **options))
    shuffle((n, p) for n, p in trained.named_parameters() if "lora_" in n)
    trained.save_pretrained(adapter)
    merged = trained.double().merge_and_unload().state_dict()
    baked = bake(base, adapter, output="baked.safetensors")
    assert_baked(read(baked), merged, read(base), limit=LIMITS[dtype])


# -- AutoModel-trained adapters: the path lacks the head's prefix ------------------------------------------


@pytest.mark.parametrize(("name", "cls"), [("llama", "LlamaModel"), ("gpt2", "GPT2Model"), ("bert", "BertModel")])
def test_an_adapter_of_the_headless_model(
    name: str, cls: str, bake: Any, read: Any, assert_baked: Any, shuffle: Any, tmp_path: Path
) -> None:
    model = build(name)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.save_pretrained(base)
    headless = getattr(transformers, cls).from_pretrained(base, dtype=torch.float32)
    trained = peft.get_peft_model(headless, lora(target_modules=["q_proj", "c_attn", "query"], **turned(name)))
    shuffle((n, p) for n, p in trained.named_parameters() if "lora_" in n)
    trained.save_pretrained(adapter)
    merged = trained.double().merge_and_unload()
    inner = model.base_model_prefix
    expected = model.double().state_dict() | {f"{inner}.{key}": value for key, value in merged.state_dict().items()}
    assert_baked(read(bake(base, adapter)), expected, read(base), limit=LIMITS[torch.float32], changed=2)


def test_an_adapter_of_the_whole_model_on_the_headless_checkpoint(
    bake: Any, read: Any, assert_baked: Any, shuffle: Any, tmp_path: Path
) -> None:
    model = build("llama")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model.model.save_pretrained(base)
    trained = peft.get_peft_model(model, lora())
    shuffle((n, p) for n, p in trained.named_parameters() if "lora_" in n)
    trained.save_pretrained(adapter)
    merged = trained.double().merge_and_unload().model.state_dict()
    assert_baked(read(bake(base, adapter)), merged, read(base), limit=LIMITS[torch.float32], changed=14)


# -- several adapters, strengths ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_adapters_with_strengths(
    dtype: torch.dtype, bake: Any, read: Any, assert_baked: Any, shuffle: Any, tmp_path: Path
) -> None:
    base, strengths = tmp_path / "base", {"one": 2.0, "two": -0.3}
    model = build("mistral").to(dtype)
    model.save_pretrained(base)
    model.double()
    trained = peft.get_peft_model(model, lora(r=3), adapter_name="one")
    trained.add_adapter("two", lora(r=5, use_rslora=True, target_modules=["q_proj", "up_proj"]))
    shuffle((n, p) for n, p in trained.named_parameters() if "lora_" in n)
    trained.float().save_pretrained(tmp_path)
    trained.double()
    for name, strength in strengths.items():
        for module in trained.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer) and name in module.scaling:
                module.scaling[name] *= strength
    merged = trained.merge_and_unload(adapter_names=list(strengths))
    entries = [{"path": str(tmp_path / name), "strength": value} for name, value in strengths.items()]
    assert_baked(read(bake(base, *entries)), merged.state_dict(), read(base), limit=LIMITS[dtype], changed=14)


# -- refusals: where PEFT's merge is no merge of this base -------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_head_that_the_base_ties_to_its_embedding_is_refused(bake: Any, tmp_path: Path) -> None:
    model = build("gemma")
    model.save_pretrained(tmp_path / "base")
    config = lora(modules_to_save=["lm_head"], target_modules=["q_proj"])
    with pytest.warns(UserWarning, match="tie"):
        peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(LorabakeError, match="lm_head"):
        bake(tmp_path / "base", tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*tie:UserWarning")
def test_an_embedding_that_the_base_ties_to_its_head_is_refused(bake: Any, shuffle: Any, tmp_path: Path) -> None:
    """PEFT trains the embedding alone, and its merge unties the two: no file with one tensor for both holds that."""
    model = build("gemma")
    model.save_pretrained(tmp_path / "base")
    trained = peft.get_peft_model(model, lora(modules_to_save=["embed_tokens"], target_modules=["q_proj"]))
    shuffle((n, p) for n, p in trained.named_parameters() if "lora_" in n or "modules_to_save" in n)
    trained.save_pretrained(tmp_path / "adapter")
    with pytest.raises(LorabakeError, match="embed_tokens"):
        bake(tmp_path / "base", tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*(tie|embedding layers):UserWarning")
@pytest.mark.parametrize(
    "trained_too",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}},
    ],
    ids=str,
)
def test_an_embedding_that_peft_keeps_tied_is_changed_once(
    trained_too: dict[str, Any], bake: Any, read: Any, shuffle: Any, tmp_path: Path
) -> None:
    """PEFT writes it under both names, or names the tokens of both; its merge adds a LoRA's product twice."""
    if "ensure_weight_tying" not in peft.LoraConfig.__dataclass_fields__:
        pytest.skip("this PEFT does not keep weights tied")
    model, base = build("gemma"), tmp_path / "base"
    model.save_pretrained(base)
    config = lora(**{"target_modules": ["q_proj"], "ensure_weight_tying": True, **trained_too})
    tuned = peft.get_peft_model(model, config)
    shuffle((name, each) for name, each in tuned.named_parameters() if each.requires_grad)
    tuned.save_pretrained(tmp_path / "adapter")
    folder = bake(base, tmp_path / "adapter")
    assert read(folder).keys() == read(base).keys()
    baked = type(model).from_pretrained(folder)
    assert baked.lm_head.weight is baked.model.embed_tokens.weight
    assert torch.allclose(outputs(baked.eval()), outputs(tuned.eval()), atol=1e-5)


def test_pissa_is_refused(bake: Any, tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    peft.get_peft_model(model, lora(init_lora_weights="pissa")).save_pretrained(tmp_path / "adapter")
    with pytest.raises(LorabakeError, match="init_lora_weights is 'pissa'"):
        bake(tmp_path / "base", tmp_path / "adapter")


def test_prompts_are_refused(bake: Any, tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(LorabakeError, match="type PROMPT_TUNING cannot be baked: it learns tokens put before"):
        bake(tmp_path / "base", tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore:.*embedding layers:UserWarning")
def test_trained_tokens_replace_their_rows(bake: Any, read: Any, tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(model, lora(target_modules=["q_proj"], trainable_token_indices=[3, 5]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(0.3)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    after, wanted = read(bake(tmp_path / "base", tmp_path / "adapter")), read(tmp_path / "merged")
    before = read(tmp_path / "base")
    key = "model.embed_tokens.weight"
    changed = (after[key] != before[key]).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3, 5]
    assert torch.equal(after[key], wanted[key])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("is_apart", [False, True])
def test_trained_tokens_of_a_tied_embedding_change_the_head_too(
    is_apart: bool, bake: Any, read: Any, tmp_path: Path
) -> None:
    """PEFT trains them in both; a copy of the head that is stored apart would keep the old rows."""
    model, base = build("gemma"), tmp_path / "base"
    model.save_pretrained(base)
    if is_apart:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
        tensors = read(base)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    tuned = peft.get_peft_model(model, lora(target_modules=["q_proj"], trainable_token_indices=[3, 5]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(0.3)
    tuned.save_pretrained(tmp_path / "adapter")
    if is_apart:
        with pytest.raises(LorabakeError, match="lm_head is stored apart"):
            bake(base, tmp_path / "adapter")
        return
    baked = type(model).from_pretrained(bake(base, tmp_path / "adapter"))
    assert torch.allclose(outputs(baked.eval()), outputs(tuned.eval()), atol=1e-5)


def test_an_adapter_of_another_model_is_refused(bake: Any, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path / "base")
    peft.get_peft_model(build("bert"), lora()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(LorabakeError, match=r"no place on the base|is for"):
        bake(tmp_path / "base", tmp_path / "adapter")
