"""LoRAs in other libraries' names and order give, baked, the logits of those libraries' own forward passes.

The passes of torchtune and litgpt are written out here from their definitions, in float64: which rows a rotary
embedding takes together, how heads share keys, and where a LoRA's factors go. llama.cpp's order of rows is written
out, too; transformers reads the GGUF files that have it, and PEFT merges the LoRA that was converted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import lorabake  # noqa: E402
from tests import builders as b  # noqa: E402

Weights = Mapping[str, torch.Tensor]
Linear = Callable[[str, torch.Tensor], torch.Tensor]

SIZES: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
HEADS, GROUPS, RANK, ALPHA = 4, 2, 3, 7
TOKENS = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7]])
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with a head_dim": ("Llama", {"head_dim": 12}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "gemma": ("Gemma", {"head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "phi3": ("Phi3", {}),
}
OTHER_FIELDS: dict[str, dict[str, Any]] = {
    "GPTNeoX": {"num_key_value_heads": 4, "rotary_pct": 0.5, "hidden_act": "gelu", "attention_bias": True},
    "Gemma2": {"head_dim": 8},
}


def model_of(name: str, folder: Path, dtype: torch.dtype = torch.float64) -> Any:
    """Save a model of random weights in a dtype, and return it in float64."""
    title, fields = MODELS.get(name, (name, OTHER_FIELDS.get(name, {})))
    torch.manual_seed(0)
    config = getattr(transformers, f"{title}Config")(**{**SIZES, **fields})
    model = getattr(transformers, f"{title}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.to(dtype).save_pretrained(folder)
    return model.double()


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Compare logits; transformers computes norms and rotary embeddings in float32, whatever the model is in."""
    torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def baked(folder: Path, lora: str) -> Any:
    """Bake a LoRA into the model beside it, verify the result, and load it with transformers."""
    path = b.recipe(folder, base="base", loras=[{"path": lora, "strength": 1.0}], output={"path": "out"})
    b.run(path)
    options = lorabake.VerifyOptions(stages=("structure", "weights"))
    assert lorabake.verify(lorabake.load_recipe(path), options=options).exit_code == 0
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder / "out", dtype=torch.float64, attn_implementation="eager"
    ).eval()


# -- a decoder, with the parts in which libraries differ left open ---------------------------------------------


def in_pairs(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Turn values 2i and 2i + 1 of each head by position · theta^(-2i/d) (arXiv 2104.09864)."""
    size = x.shape[-1]
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * theta ** (
        -torch.arange(0, size, 2, dtype=torch.float64) / size
    )
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(-2)


def in_halves(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Turn values i and i + d/2 of each head together."""
    size = x.shape[-1] // 2
    together = torch.stack((x[..., :size], x[..., size:]), dim=-1).flatten(-2)
    turned = in_pairs(together, theta).unflatten(-1, (-1, 2))
    return torch.cat((turned[..., 0], turned[..., 1]), dim=-1)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend causally, each group of query heads to its key; all are (heads, positions, size)."""
    k, v = (each.repeat_interleave(len(q) // len(each), 0) for each in (k, v))
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def heads_of(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.unflatten(-1, (count, -1)).transpose(0, 1)


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


# -- torchtune ---------------------------------------------------------------------------------------------------

IN_PAIRS = ("llama", "llama with a head_dim", "mistral", "gemma")


def to_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Put rows i and i + d/2 of each head beside each other, as torchtune does when it loads a checkpoint."""
    turned = torch.empty_like(rows)
    size = len(rows) // heads
    for head in range(heads):
        for i in range(size // 2):
            turned[head * size + 2 * i] = rows[head * size + i]
            turned[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
    return turned


def torchtune_weights(model: Any, name: str) -> dict[str, torch.Tensor]:
    """Convert a model's weights as torchtune does."""
    state, found = model.state_dict(), {}
    for i in range(SIZES["num_hidden_layers"]):
        old, new = f"model.layers.{i}", f"layers.{i}"
        if name == "phi3":
            size = SIZES["hidden_size"] // HEADS
            sizes = (HEADS * size, GROUPS * size, GROUPS * size)
            q, k, v = state[f"{old}.self_attn.qkv_proj.weight"].split(sizes)
            gate, up = state[f"{old}.mlp.gate_up_proj.weight"].chunk(2)
        else:
            q, k, v = (state[f"{old}.self_attn.{each}_proj.weight"] for each in "qkv")
            gate, up = (state[f"{old}.mlp.{each}_proj.weight"] for each in ("gate", "up"))
        if name in IN_PAIRS:
            q, k = to_pairs(q, HEADS), to_pairs(k, GROUPS)
        found |= {f"{new}.attn.q_proj": q, f"{new}.attn.k_proj": k, f"{new}.attn.v_proj": v}
        found |= {f"{new}.mlp.w1": gate, f"{new}.mlp.w3": up, f"{new}.mlp.w2": state[f"{old}.mlp.down_proj.weight"]}
        found[f"{new}.attn.output_proj"] = state[f"{old}.self_attn.o_proj.weight"]
    return found | {"output": state["lm_head.weight"]}


def torchtune_adapter(
    weights: Weights, folder: Path, *, dora: bool, file: str = "adapter_model.pt"
) -> dict[str, torch.Tensor]:
    """Save an adapter on every linear layer, as torchtune does; return what its layers compute with."""
    values, tensors, effective = b.Values(3), dict[str, torch.Tensor](), dict(weights)
    for name, weight in weights.items():
        down, up = values(RANK, weight.shape[1]).double(), values(weight.shape[0], RANK).double() * 0.1
        tensors |= {f"{name}.lora_a.weight": down, f"{name}.lora_b.weight": up}
        effective[name] = weight + ALPHA / RANK * up @ down
        if dora:
            tensors[f"{name}.magnitude"] = values(len(weight)).double().abs() + 0.5
            length = effective[name].norm(dim=1, keepdim=True)
            effective[name] = effective[name] / length * tensors[f"{name}.magnitude"][:, None]
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / file)
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj", "w1", "output"], "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return effective


def torchtune_forward(model: Any, name: str, weights: Weights) -> torch.Tensor:
    """Run torchtune's decoder: its names, its rotary embedding; norms and biases come from the model."""
    state, gemma = model.state_dict(), name == "gemma"
    rope = in_pairs if name in IN_PAIRS else in_halves
    theta = model.config.rope_parameters["rope_theta"]
    scale = 1.0 if gemma else 0.0
    x = state["model.embed_tokens.weight"][TOKENS[0]] * (SIZES["hidden_size"] ** 0.5 if gemma else 1.0)
    eps = model.config.rms_norm_eps

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return rms(x, state[key] + scale, eps)

    def bias(key: str, heads: int) -> torch.Tensor | float:
        found = state.get(f"{key}.bias")
        return 0.0 if found is None else to_pairs(found, heads) if name in IN_PAIRS else found

    for i in range(SIZES["num_hidden_layers"]):
        old, new = f"model.layers.{i}", f"layers.{i}"
        h = norm(x, f"{old}.input_layernorm.weight")
        parts = []
        for part, count in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)):
            shift = (
                state.get(f"{old}.self_attn.v_proj.bias", 0.0)
                if part == "v"
                else bias(f"{old}.self_attn.{part}_proj", count)
            )
            each = heads_of(h @ weights[f"{new}.attn.{part}_proj"].T + shift, count)
            if name == "qwen3" and part != "v":
                each = norm(each, f"{old}.self_attn.{part}_norm.weight")
            parts.append(each if part == "v" else rope(each, theta))
        x = x + attention(*parts) @ weights[f"{new}.attn.output_proj"].T
        h = norm(x, f"{old}.post_attention_layernorm.weight")
        gate = h @ weights[f"{new}.mlp.w1"].T
        act = torch.nn.functional.gelu(gate, approximate="tanh") if gemma else torch.nn.functional.silu(gate)
        x = x + (act * (h @ weights[f"{new}.mlp.w3"].T)) @ weights[f"{new}.mlp.w2"].T
    return (norm(x, "model.norm.weight") @ weights["output"].T)[None]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", MODELS)
def test_torchtune(name: str, dora: bool, tmp_path: Path) -> None:
    model = model_of(name, tmp_path / "base")
    weights = torchtune_weights(model, name)
    plain = torchtune_forward(model, name, weights)
    same(plain, logits_of(model))  # this decoder is the model's
    file = "adapter_0.pt" if dora else "adapter_model.pt"
    effective = torchtune_adapter(weights, tmp_path / "lora", dora=dora, file=file)
    expected = torchtune_forward(model, name, effective)
    assert (expected - plain).abs().max() > 0.1
    after = baked(tmp_path, f"lora/{file}")
    same(logits_of(after), expected)


def test_torchtune_on_gemma_2(tmp_path: Path) -> None:
    """Gemma 2's decoder differs, and torchtune converts its checkpoint as Gemma's: so the weights are compared."""
    model = model_of("Gemma2", tmp_path / "base")
    effective = torchtune_adapter(torchtune_weights(model, "gemma"), tmp_path / "lora", dora=True)
    after = torchtune_weights(baked(tmp_path, "lora"), "gemma")
    for name, weight in effective.items():
        torch.testing.assert_close(after[name], weight, rtol=1e-12, atol=1e-12)


# -- litgpt ------------------------------------------------------------------------------------------------------

LIT_MODELS = ("llama", "qwen2", "phi3", "GPTNeoX")
TRAINED = {"q and v": (True, False, True), "k": (False, True, False), "all": (True, True, True)}


def interleaved(parts: list[torch.Tensor], groups: int) -> torch.Tensor:
    """Put the heads of q, k and v group by group, as litgpt once had them."""
    pieces = [part.chunk(groups) for part in parts]
    return torch.cat([piece[group] for group in range(groups) for piece in pieces])


def apart(matrix: torch.Tensor, heads: int, groups: int) -> list[torch.Tensor]:
    """Undo `interleaved`."""
    size = len(matrix) // (heads + 2 * groups)
    found: dict[str, list[torch.Tensor]] = {"q": [], "k": [], "v": []}
    for group in matrix.chunk(groups):
        for name, piece in zip("qkv", group.split((heads // groups * size, size, size)), strict=True):
            found[name].append(piece)
    return [torch.cat(found[name]) for name in "qkv"]


def litgpt_weights(model: Any, name: str) -> dict[str, torch.Tensor]:
    """Convert a model's weights as litgpt does; `qkv` has q before k before v."""
    state, found = model.state_dict(), {}
    for i in range(SIZES["num_hidden_layers"]):
        new = f"transformer.h.{i}"
        if name == "GPTNeoX":
            old = f"gpt_neox.layers.{i}"
            found[f"{new}.attn.qkv"] = torch.cat(
                apart(state[f"{old}.attention.query_key_value.weight"], HEADS, HEADS)
            )
            found[f"{new}.attn.proj"] = state[f"{old}.attention.dense.weight"]
            found[f"{new}.mlp.fc"] = state[f"{old}.mlp.dense_h_to_4h.weight"]
            found[f"{new}.mlp.proj"] = state[f"{old}.mlp.dense_4h_to_h.weight"]
            continue
        old = f"model.layers.{i}"
        if name == "phi3":
            found[f"{new}.attn.qkv"] = state[f"{old}.self_attn.qkv_proj.weight"]
            gate, up = state[f"{old}.mlp.gate_up_proj.weight"].chunk(2)
        else:
            found[f"{new}.attn.qkv"] = torch.cat([state[f"{old}.self_attn.{each}_proj.weight"] for each in "qkv"])
            gate, up = (state[f"{old}.mlp.{each}_proj.weight"] for each in ("gate", "up"))
        found |= {f"{new}.mlp.fc_1": gate, f"{new}.mlp.fc_2": up}
        found[f"{new}.mlp.proj"] = state[f"{old}.mlp.down_proj.weight"]
        found[f"{new}.attn.proj"] = state[f"{old}.self_attn.o_proj.weight"]
    return found | {"lm_head": state["lm_head.weight"]}


def litgpt_adapter(
    weights: Weights, folder: Path, *, trained: tuple[bool, bool, bool], groups: int, legacy: bool
) -> dict[str, torch.Tensor]:
    """Save an adapter as litgpt does; return what its layers compute with, q before k before v."""
    values, tensors, effective = b.Values(4), dict[str, torch.Tensor](), dict(weights)
    for name, weight in weights.items():
        if not name.endswith("qkv"):
            down, up = values(RANK, weight.shape[1]).double(), values(weight.shape[0], RANK).double() * 0.1
            tensors |= {f"{name}.lora_A": down, f"{name}.lora_B": up}
            effective[name] = weight + ALPHA / RANK * up @ down
            continue
        size = len(weight) // (HEADS + 2 * groups)
        sizes = [count * size * on for count, on in zip((HEADS, groups, groups), trained, strict=True)]
        down = values(RANK * sum(trained), weight.shape[1]).double()
        up = values(sum(sizes), RANK).double() * 0.1
        key = name.replace("qkv", "attn") if legacy else name
        tensors |= {f"{key}.lora_A": down, f"{key}.lora_B": up}
        factors = iter(down.chunk(sum(trained)))
        deltas = [
            rows @ next(factors) if on else torch.zeros(count * size, weight.shape[1], dtype=torch.float64)
            for count, on, rows in zip((HEADS, groups, groups), trained, up.split(sizes), strict=True)
        ]
        delta = torch.cat(deltas)
        if legacy and all(trained):  # not scattered, but added to the interleaved matrix as it is
            delta = torch.cat(apart(delta, HEADS, groups))
        effective[name] = weight + ALPHA / RANK * delta
    folder.mkdir(exist_ok=True)
    torch.save({"model": tensors}, folder / "lit_model.pth.lora")
    flags = {f"lora_{name}": on for name, on in zip(("query", "key", "value"), trained, strict=True)}
    (folder / "hyperparameters.yaml").write_text(yaml.safe_dump({"lora_r": RANK, "lora_alpha": ALPHA, **flags}))
    model = {"name": "x", "n_head": HEADS, "n_query_groups": groups, "n_embd": SIZES["hidden_size"]}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(model))
    return effective


def litgpt_forward(model: Any, name: str, weights: Weights, groups: int) -> torch.Tensor:
    """Run litgpt's model; norms, biases and embeddings come from the model."""
    state, neox = model.state_dict(), name == "GPTNeoX"
    theta = model.config.rope_parameters["rope_theta"]
    stem = "gpt_neox" if neox else "model"
    x = state[f"{stem}.embed_{'in' if neox else 'tokens'}.weight"][TOKENS[0]]

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        if neox:
            return torch.nn.functional.layer_norm(
                x, x.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"], model.config.layer_norm_eps
            )
        return rms(x, state[f"{key}.weight"], model.config.rms_norm_eps)

    for i in range(SIZES["num_hidden_layers"]):
        old, new = f"{stem}.layers.{i}", f"transformer.h.{i}"
        h = norm(x, f"{old}.input_layernorm")
        qkv = h @ weights[f"{new}.attn.qkv"].T
        if neox:
            qkv = qkv + torch.cat(apart(state[f"{old}.attention.query_key_value.bias"], HEADS, HEADS))
        elif name == "qwen2":
            qkv = qkv + torch.cat([state[f"{old}.self_attn.{each}_proj.bias"] for each in "qkv"])
        size = qkv.shape[1] // (HEADS + 2 * groups)
        q, k, v = (
            heads_of(each, each.shape[1] // size)
            for each in qkv.split((HEADS * size, groups * size, groups * size), dim=1)
        )
        turns = size // 2 if neox else size
        q, k = (torch.cat((in_halves(each[..., :turns], theta), each[..., turns:]), -1) for each in (q, k))
        attended = attention(q, k, v) @ weights[f"{new}.attn.proj"].T
        if neox:
            attended = attended + state[f"{old}.attention.dense.bias"]
            h = norm(x, f"{old}.post_attention_layernorm")
            h = torch.nn.functional.gelu(h @ weights[f"{new}.mlp.fc"].T + state[f"{old}.mlp.dense_h_to_4h.bias"])
            x = x + attended + h @ weights[f"{new}.mlp.proj"].T + state[f"{old}.mlp.dense_4h_to_h.bias"]
            continue
        x = x + attended
        h = norm(x, f"{old}.post_attention_layernorm")
        gate = torch.nn.functional.silu(h @ weights[f"{new}.mlp.fc_1"].T)
        x = x + (gate * (h @ weights[f"{new}.mlp.fc_2"].T)) @ weights[f"{new}.mlp.proj"].T
    return (norm(x, f"{stem}.{'final_layer_norm' if neox else 'norm'}") @ weights["lm_head"].T)[None]


@pytest.mark.parametrize("legacy", [False, True], ids=["qkv", "attn"])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("name", LIT_MODELS)
def test_litgpt(name: str, trained: str, legacy: bool, tmp_path: Path) -> None:
    model = model_of(name, tmp_path / "base")
    groups = HEADS if name == "GPTNeoX" else GROUPS
    weights = litgpt_weights(model, name)
    plain = litgpt_forward(model, name, weights, groups)
    same(plain, logits_of(model))
    effective = litgpt_adapter(weights, tmp_path / "lora", trained=TRAINED[trained], groups=groups, legacy=legacy)
    expected = litgpt_forward(model, name, effective, groups)
    assert (expected - plain).abs().max() > 0.1
    same(logits_of(baked(tmp_path, "lora")), expected)


# -- llama.cpp ---------------------------------------------------------------------------------------------------

gguf = pytest.importorskip("gguf")
peft = pytest.importorskip("peft")

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "Starcoder2": "starcoder2"}
ARCHITECTURES |= {"phi3": "phi3"}
OWN = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def llama_cpp_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of q or k as llama.cpp's converter does for Llama."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def llama_cpp_name(key: str, architecture: str) -> str:
    """Rename a tensor by the gguf package's own map."""
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), SIZES["num_hidden_layers"]
    )
    found = names.get_name(key, try_suffixes=(".weight", ".bias"))
    assert found is not None, key
    return str(found)


def converted(key: str, values: np.ndarray, architecture: str) -> np.ndarray:
    if architecture == "llama" and (match := re.search(r"([qk])_proj\.(?:weight|bias)\Z", key)):
        return llama_cpp_rows(values, HEADS if match[1] == "q" else GROUPS)
    return values


def write_gguf(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_gguf(model: Any, path: Path, architecture: str, way: str) -> None:
    """Convert a model as llama.cpp does, its matrices in a way of packing."""
    writer, config = gguf.GGUFWriter(path, architecture), model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_vocab_size(config.vocab_size)
    writer.add_pad_token_id(0)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", 1e-6))
    writer.add_layer_norm_eps(getattr(config, "norm_epsilon", 1e-5))
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
    kind = gguf.GGMLQuantizationType[way]
    for key, tensor in model.state_dict().items():
        values = converted(key, tensor.float().numpy(), architecture)
        if values.ndim == 2 and kind is not gguf.GGMLQuantizationType.F32:
            packed = gguf.quantize(values, kind)
            writer.add_tensor(llama_cpp_name(key, architecture), packed, raw_dtype=kind)
        else:
            writer.add_tensor(llama_cpp_name(key, architecture), np.ascontiguousarray(values))
    if architecture == "llama":
        writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32))
    write_gguf(writer)


WAYS = [("llama", way) for way in ("F32", "F16", "BF16", "Q8_0", "Q4_0")]
WAYS += [("mistral", "Q5_1"), ("qwen2", "F16"), ("qwen3", "BF16"), ("phi3", "Q8_0"), ("Starcoder2", "Q4_0")]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_a_language_model_in_gguf(name: str, way: str, tmp_path: Path) -> None:
    model = model_of(name, tmp_path / "hf", torch.float32)
    save_gguf(model, tmp_path / "base.gguf", ARCHITECTURES[name], way)
    how: dict[str, Any] = {"gguf_file": "base.gguf", "dtype": torch.float32}
    if ARCHITECTURES[name] == "llama":
        known = transformers.LlamaForCausalLM.from_pretrained(tmp_path, **how)
    else:  # of which the file does not say all that their configurations need
        known = type(model).from_pretrained(tmp_path, config=model.config, **how)
    path = b.recipe(tmp_path, base="base.gguf", loras=[], output={"dtype": "float32"})
    notes = lorabake.plan(lorabake.load_recipe(path)).notes
    assert any("rope_freqs.weight" in note for note in notes) == (ARCHITECTURES[name] == "llama")
    b.run(path)
    after, expected = load_file(tmp_path / "out.safetensors"), known.state_dict()
    assert after.keys() == expected.keys() == model.state_dict().keys()
    for key, tensor in after.items():
        assert tensor.dtype is torch.float32
        assert torch.equal(tensor, expected[key]), key
    assert_true(path)


def assert_true(path: Path) -> None:
    """Ask verify, which must be content, and not so where two rows of q are exchanged."""
    recipe, options = lorabake.load_recipe(path), lorabake.VerifyOptions(stages=("structure", "weights"))
    assert lorabake.verify(recipe, options=options).exit_code == 0
    tensors = load_file(path.parent / "out.safetensors")
    key = next(key for key in tensors if key.endswith(("q_proj.weight", "qkv_proj.weight")))
    tensors[key][[0, 1]] = tensors[key][[1, 0]]
    wrong = b.save(path.parent / "wrong.safetensors", tensors, b.header(path.parent / "out.safetensors")[1])
    assert lorabake.verify(recipe, wrong, options=options).exit_code == 1


def peft_lora(name: str, model: Any, folder: Path, shuffle: Callable[..., None]) -> dict[str, torch.Tensor]:
    """Save a LoRA of PEFT on all linear layers and the embeddings; return the weights that PEFT merges."""
    targets = sorted({key.rpartition(".")[2] for key, each in model.named_modules() if hasattr(each, "weight")})
    targets = [key for key in targets if not key.endswith("norm")]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    tuned = peft.get_peft_model(model, config)
    shuffle(tuned.named_parameters())
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return dict(tuned.merge_and_unload().state_dict())


def save_gguf_lora(folder: Path, path: Path, architecture: str, way: str, alpha: float = ALPHA) -> None:
    """Convert PEFT's LoRA as llama.cpp does: rows of B as those of the weight; A of the embedding turned."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    kind = gguf.GGMLQuantizationType[way]
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?", key)
        assert match is not None, key
        base, values = f"{match[1]}.weight", tensor.float().numpy()
        name = llama_cpp_name(base, architecture)
        if match[2] == "B":
            values = converted(base, values, architecture)
        elif name == "token_embd.weight":
            values = values.T
        values = np.ascontiguousarray(values)
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 and way != "F32":
            writer.add_tensor(f"{name}.lora_{match[2].lower()}", gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.lora_{match[2].lower()}", values)
    write_gguf(writer)


@pytest.mark.parametrize("base", ["safetensors", "gguf"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_lora_in_gguf(name: str, base: str, tmp_path: Path, shuffle: Callable[..., None]) -> None:
    model = model_of(name, tmp_path / "base", torch.float32)
    architecture = ARCHITECTURES[name]
    if base == "gguf":
        save_gguf(model, tmp_path / "base.gguf", architecture, "F32")
    expected = peft_lora(name, model.double(), tmp_path / "peft", shuffle)
    save_gguf_lora(tmp_path / "peft", tmp_path / "lora.gguf", architecture, "F32")
    path = b.recipe(
        tmp_path,
        base="base/model.safetensors" if base == "safetensors" else "base.gguf",
        loras=["lora.gguf"],
        output={"dtype": "float32"},
    )
    before = load_file(tmp_path / "base" / "model.safetensors")
    b.run(path)
    after = load_file(tmp_path / "out.safetensors")
    assert after.keys() == expected.keys() == before.keys()
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key]) == ("norm" in key or "bias" in key), key
        torch.testing.assert_close(tensor.double(), expected[key], rtol=1e-5, atol=1e-5)
    assert_true(path)


def test_a_lora_in_gguf_that_is_quantised(tmp_path: Path, shuffle: Callable[..., None]) -> None:
    model = model_of("llama", tmp_path / "base", torch.float32)
    peft_lora("llama", model, tmp_path / "peft", shuffle)
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    save_gguf_lora(tmp_path / "peft", tmp_path / "lora.gguf", "llama", "Q8_0")
    path = b.recipe(tmp_path, base="base/model.safetensors", loras=["lora.gguf"])
    b.run(path)
    before, after = (load_file(tmp_path / name) for name in ("base/model.safetensors", "out.safetensors"))
    name = "model.layers.1.self_attn.q_proj"
    down = stored[f"base_model.model.{name}.lora_A.weight"].numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    down = gguf.dequantize(gguf.quantize(down, kind), kind).astype(np.float64)
    up = stored[f"base_model.model.{name}.lora_B.weight"].double()
    exact = before[f"{name}.weight"].double() + ALPHA / RANK * up @ torch.from_numpy(down)
    b.assert_rounded_once(after[f"{name}.weight"], exact, terms=[exact.abs() * 8])
    assert_true(path)


def test_an_alpha_of_0_stands_for_the_rank_in_gguf(tmp_path: Path, shuffle: Callable[..., None]) -> None:
    model = model_of("llama", tmp_path / "base", torch.float32)
    peft_lora("llama", model, tmp_path / "peft", shuffle)
    for alpha in (0.0, float(RANK)):
        save_gguf_lora(tmp_path / "peft", tmp_path / "lora.gguf", "llama", "F32", alpha)
        b.run(
            b.recipe(
                tmp_path,
                base="base/model.safetensors",
                loras=["lora.gguf"],
                output={"path": f"{alpha:g}.safetensors"},
            )
        )
    one, other = (load_file(tmp_path / f"{alpha}.safetensors") for alpha in (0, RANK))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
