"""LoRAs and bases in other libraries' names and order: what tells the order, and what is refused where nothing does.

That what is read is right is for tests/oracle/test_dialects.py, which computes with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import lorabake
from lorabake.dialects import dialects
from lorabake.dialects.llama_cpp import LLAMA_CPP
from lorabake.errors import LorabakeError
from lorabake.keymap.dialect import PARTS, Heads, Naming, Part
from lorabake.keymap.view import Region, View
from tests import builders as b
from tests.documents import inspect

Q = "model.layers.0.self_attn.q_proj"
CONFIG: dict[str, object] = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}


def base_of(folder: Path, config: Mapping[str, object] | None = None) -> dict[str, torch.Tensor]:
    """Make a Llama of two heads and one key, in float32."""
    made = b.llama(folder / "base", dtype=torch.float32)
    (folder / "base" / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return made


def refusal(folder: Path, lora: str, base: str = "base") -> str:
    loras = [lora] if lora else []
    recipe = b.recipe(folder, base=base, loras=loras, output={"path": "out", "dtype": "float32"})
    with pytest.raises(LorabakeError) as caught:
        lorabake.plan(lorabake.load_recipe(recipe), folder / ("out" if base == "base" else "out.safetensors"))
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- orders ------------------------------------------------------------------------------------------------------

HEADS = st.builds(lambda groups, each: Heads(groups * each, groups), st.integers(1, 4), st.integers(1, 4))


@given(HEADS, st.integers(1, 5), st.booleans())
def test_q_k_and_v_are_all_rows_of_a_fused_weight_once(heads: Heads, size: int, by_group: bool) -> None:
    rows = (heads.queries + 2 * heads.groups) * size
    parts = heads.parts(rows, by_group=by_group)
    found = [row for part in PARTS for each in parts[part] for row in each]
    assert sorted(found) == list(range(rows))
    assert [sum(map(len, parts[part])) // size for part in PARTS] == [heads.queries, heads.groups, heads.groups]


@given(st.integers(1, 4), st.integers(1, 4))
def test_pairs_become_halves(heads: int, half: int) -> None:
    naming = Naming((), paired={"layers.{}.attn.q_proj": "queries"})
    order = naming.order("layers.7.attn.q_proj", 2 * half * heads, Heads(heads, 1))
    found = [row for each in order for row in each]
    assert found == [
        2 * half * head + 2 * i + second for head in range(heads) for second in (0, 1) for i in range(half)
    ]
    assert naming.order("layers.7.attn.v_proj", 2 * half * heads, Heads(heads, 1)) == ()


def test_rows_that_are_not_those_of_so_many_heads() -> None:
    naming = Naming((), paired={"q": "queries"})
    for rows, heads in ((9, 2), (6, 2), (0, 2)):
        with pytest.raises(ValueError, match=f"its {rows} rows are not those of {heads} heads"):
            naming.order("q", rows, Heads(heads, 1))
    for rows, heads in ((10, Heads(2, 1)), (8, Heads(3, 2)), (0, Heads(2, 1))):
        with pytest.raises(ValueError, match=f"{rows} rows are not those of"):
            heads.parts(rows, by_group=False)
    with pytest.raises(ValueError, match="7 rows have no halves"):
        Part("x", "up").rows(7, Heads(1, 1))


def test_a_view_of_some_rows() -> None:
    view = View((Region("a", 4, 8), Region("b", 0, 3)), (7, 5))
    taken = view.take((range(5, 7), range(1, 5)))
    assert taken == View((Region("b", 1, 3), Region("a", 5, 8), Region("b", 0, 1)), (6, 5))


def test_no_key_is_of_two_dialects() -> None:
    keys = {
        "torchtune": "layers.0.attn.q_proj.lora_a.weight",
        "litgpt": "model.transformer.h.0.attn.qkv.lora_A",
        "llama.cpp": "blk.0.attn_q.weight.lora_b",
        "": "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight",
    }
    assert {each.title for each in dialects()} == keys.keys() - {""}
    for title, key in keys.items():
        assert [each.title for each in dialects() if each.speaks(iter([key]))] == ([title] if title else [])


@pytest.mark.parametrize("model", LLAMA_CPP.models)
def test_the_names_are_those_of_the_gguf_package(model: str) -> None:
    gguf = pytest.importorskip("gguf")
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == model)
    names = gguf.get_tensor_name_map(architecture, 3)
    for own, theirs in LLAMA_CPP.models[model].rows:
        assert isinstance(theirs, str)
        assert names.get_name(theirs.format(2)) == own.format(2)
    known = {gguf.TENSOR_NAMES[each] for each in gguf.MODEL_TENSORS[architecture]}
    assert {own.format("{bid}").replace("{}", "{bid}") for own, _ in LLAMA_CPP.models[model].rows} <= {
        name.format(bid="{bid}") for name in known
    }


# -- torchtune ---------------------------------------------------------------------------------------------------


def torchtune(folder: Path, *, config: Mapping[str, object] | None = None, rows: int = 8) -> dict[str, torch.Tensor]:
    values = b.Values(1)
    tensors = {
        "layers.0.attn.q_proj.lora_a.weight": values(2, 8),
        "layers.0.attn.q_proj.lora_b.weight": values(rows, 2),
    }
    b.save(folder / "adapter" / "adapter_model.safetensors", tensors)
    if config is not None:
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return tensors


TUNED = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "peft_type": "LORA"}


def test_a_torchtune_lora_is_put_in_order_for_transformers_and_stays_for_its_own_names(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    lora = torchtune(tmp_path, config=TUNED)
    delta = 2 * lora["layers.0.attn.q_proj.lora_b.weight"] @ lora["layers.0.attn.q_proj.lora_a.weight"]
    b.run(b.recipe(tmp_path, base="base", loras=["adapter"], output={"path": "out"}))
    after = load_file(tmp_path / "out" / "model.safetensors")
    # head by head, the first ones of the pairs and then the second ones
    torch.testing.assert_close(after[f"{Q}.weight"], base[f"{Q}.weight"] + delta[[0, 2, 1, 3, 4, 6, 5, 7]])
    own = tmp_path / "own"
    b.save(own / "model.safetensors", {"layers.0.attn.q_proj.weight": base[f"{Q}.weight"]})
    (own / "config.json").write_text(json.dumps(CONFIG))
    b.run(b.recipe(tmp_path, base="own", loras=["adapter"], output={"path": "own_out"}))
    after = load_file(tmp_path / "own_out" / "model.safetensors")
    torch.testing.assert_close(after["layers.0.attn.q_proj.weight"], base[f"{Q}.weight"] + delta)
    described = inspect(tmp_path / "adapter")
    assert (described["what"], described["names_of"], described["ranks"]) == ("lora", "torchtune", {"2": 1})


def test_torchtunes_own_file_goes_before_the_one_that_it_saves_for_peft(tmp_path: Path) -> None:
    base_of(tmp_path)
    lora = torchtune(tmp_path, config=TUNED)
    torch.save(lora, tmp_path / "adapter" / "adapter_model.pt")
    b.save(tmp_path / "adapter" / "adapter_model.safetensors", {"unlike": torch.zeros(1)})
    assert inspect(tmp_path / "adapter")["names_of"] == "torchtune"


@pytest.mark.parametrize(
    ("base", "config", "words"),
    [
        (CONFIG, None, "torchtune's adapter_config.json is not there: it has the scale"),
        ({}, TUNED, "the order of torchtune's q and k depends on the model, and no config.json with a model_type is"),
        (
            {**CONFIG, "model_type": "llama4"},
            TUNED,
            "depends on the model, and its config.json says model_type 'llama4'\nKnown are llama, mistral,",
        ),
        ({"model_type": "llama"}, TUNED, "torchtune orders the rows of q and k by heads, and nothing says how many"),
        ({**CONFIG, "num_attention_heads": "2"}, TUNED, "and nothing says how many"),
        ({**CONFIG, "num_attention_heads": 3}, TUNED, "its 8 rows are not those of 3 heads"),
        (CONFIG, {**TUNED, "r": 3}, "its rank is 2, and adapter_config says 3"),
    ],
)
def test_a_torchtune_lora_whose_order_nothing_tells(
    base: dict[str, object], config: dict[str, object] | None, words: str, tmp_path: Path
) -> None:
    base_of(tmp_path, base)
    torchtune(tmp_path, config=config)
    assert words in refusal(tmp_path, "adapter")


def test_a_torchtune_lora_of_another_size_is_told_so(tmp_path: Path) -> None:
    base_of(tmp_path)
    torchtune(tmp_path, config=TUNED, rows=16)
    assert "layers.N.attn.q_proj ×1: its delta is 16 × 8; the base's weight is 8 × 8" in refusal(tmp_path, "adapter")


# -- litgpt ------------------------------------------------------------------------------------------------------

LIT_TRAINED = {"lora_r": 2, "lora_alpha": 4, "lora_query": True, "lora_key": False, "lora_value": True}
LIT_MODEL = {"n_head": 2, "n_query_groups": 1, "head_size": 4}


def litgpt(folder: Path, trained: object, model: object, *, rows: int = 12) -> None:
    values = b.Values(2)
    tensors = {"transformer.h.0.attn.qkv.lora_A": values(4, 8), "transformer.h.0.attn.qkv.lora_B": values(rows, 2)}
    (folder / "adapter").mkdir(exist_ok=True)
    torch.save({"model": tensors}, folder / "adapter" / "lit_model.pth.lora")
    for name, said in (("hyperparameters.yaml", trained), ("model_config.yaml", model)):
        if said is not None:
            text = said if isinstance(said, str) else yaml.safe_dump(said)
            (folder / "adapter" / name).write_text(text)


def test_litgpt_factors_that_are_no_matrices_are_refused(tmp_path: Path) -> None:
    base_of(tmp_path)
    for rows in (0, 7):
        litgpt(tmp_path, LIT_TRAINED, LIT_MODEL, rows=rows)
        assert f"factors ({rows}, 2) and (4, 8): not those of q, v of rank 2" in refusal(tmp_path, "adapter")


@pytest.mark.parametrize(
    ("trained", "model", "words"),
    [
        (None, LIT_MODEL, "litgpt's hyperparameters.yaml is not beside it: it says how q, k and v lie"),
        (LIT_TRAINED, None, "litgpt's model_config.yaml is not beside it: it says how q, k and v lie"),
        ("a: [", LIT_MODEL, "hyperparameters.yaml: not valid YAML: "),
        ("[1]", LIT_MODEL, "hyperparameters.yaml: must be a mapping"),
        ({**LIT_TRAINED, "lora_r": 0}, LIT_MODEL, "lora_r must be a positive whole number, not 0"),
        (LIT_TRAINED, {"n_head": 2}, "n_query_groups must be a positive whole number, not None"),
        ({**LIT_TRAINED, "lora_key": True}, LIT_MODEL, "not those of q, k, v of rank 2, with 2 heads in 1 groups"),
        ({**LIT_TRAINED, "lora_value": False}, LIT_MODEL, "not those of q of rank 2"),
        ({**LIT_TRAINED, "lora_r": 4}, LIT_MODEL, "not those of q, v of rank 4"),
        (
            LIT_TRAINED,
            {"n_head": 4, "n_query_groups": 2},
            "says 4 heads in 2 groups, and the base's config.json does not",
        ),
        ({"lora_r": 2, "lora_alpha": 4}, LIT_MODEL, "has down, up, not the factors of q, k and v"),
    ],
)
def test_a_litgpt_lora_whose_order_nothing_tells(trained: object, model: object, words: str, tmp_path: Path) -> None:
    base_of(tmp_path)
    litgpt(tmp_path, trained, model)
    assert words in refusal(tmp_path, "adapter")


def test_what_says_how_a_lora_lies_is_kept_with_its_digest(tmp_path: Path) -> None:
    base_of(tmp_path)
    litgpt(tmp_path, LIT_TRAINED, LIT_MODEL)
    plan = lorabake.plan(
        lorabake.load_recipe(b.recipe(tmp_path, base="base", loras=["adapter"], output={"path": "out"}))
    )
    (lora,) = json.loads(plan.files[0].metadata["lorabake.inputs"])["loras"]
    assert [each["name"] for each in lora["files"]] == [
        "lit_model.pth.lora",
        "hyperparameters.yaml",
        "model_config.yaml",
    ]
    described = inspect(tmp_path / "adapter")
    assert (described["names_of"], described["ranks"]) == ("litgpt", {"2": 1})
    assert plan.ledgers[0].tensors == plan.ledgers[0].applied == 2
    assert {key for patch in plan.patches for key in patch.view.keys} == {f"{Q}.weight", f"{Q[:-6]}v_proj.weight"}


# -- llama.cpp ---------------------------------------------------------------------------------------------------


def write(
    path: Path, model: str, facts: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], **options: Any
) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, model, **options)
    for key, value in facts.items():
        adds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}
        adds[type(value)](key, value)
    for key, shape in tensors.items():
        writer.add_tensor(key, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


ADAPTER = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 4.0}
FACTORS: dict[str, tuple[int, ...]] = {"blk.0.attn_q.weight.lora_a": (2, 8), "blk.0.attn_q.weight.lora_b": (8, 2)}


@pytest.mark.parametrize(
    ("model", "facts", "words"),
    [
        ("llama", {"adapter.type": "lora"}, "the GGUF file says no adapter.lora.alpha: it has the scale"),
        ("llama", {**ADAPTER, "adapter.alora.invocation_tokens": [1, 2]}, "an aLoRA: it acts from certain tokens on"),
        ("gemma2", ADAPTER, "for a model that llama.cpp calls 'gemma2': what its conversion does is not known"),
    ],
)
def test_a_lora_in_gguf_that_cannot_be_read(model: str, facts: dict[str, Any], words: str, tmp_path: Path) -> None:
    base_of(tmp_path)
    write(tmp_path / "lora.gguf", model, facts, FACTORS)
    assert words in refusal(tmp_path, "lora.gguf")


def test_a_norm_in_a_lora_in_gguf_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    write(tmp_path / "lora.gguf", "llama", ADAPTER, {**FACTORS, "blk.1.attn_norm.weight": (8,)})
    b.run(b.recipe(tmp_path, base="base", loras=["lora.gguf"], output={"path": "out"}))
    after = load_file(tmp_path / "out" / "model.safetensors")
    changed = {key for key, tensor in base.items() if not torch.equal(tensor, after[key])}
    assert changed == {f"{Q}.weight", "model.layers.1.input_layernorm.weight"}
    assert torch.equal(after["model.layers.1.input_layernorm.weight"], torch.ones(8))
    described = inspect(tmp_path / "lora.gguf")
    assert (described["names_of"], described["alphas"], described["ranks"]) == (
        "llama.cpp",
        {"4 (header)": 2},
        {"2": 1},
    )


def test_a_lora_in_gguf_of_an_image_model_has_the_names_of_the_checkpoint(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.zeros(8, 8)})
    write(tmp_path / "lora.gguf", "flux", ADAPTER, {"fc.weight.lora_a": (2, 8), "fc.weight.lora_b": (8, 2)})
    b.run(b.recipe(tmp_path, loras=["lora.gguf"]))
    assert torch.equal(load_file(tmp_path / "out.safetensors")["fc.weight"], torch.full((8, 8), 4.0))


MODEL = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}


@pytest.mark.parametrize(
    ("model", "facts", "tensors", "words"),
    [
        (
            "gemma2",
            {},
            {"token_embd.weight": (8, 8)},
            "a GGUF file of a model called 'gemma2': its conversion is not known",
        ),
        ("llama", ADAPTER, FACTORS, "a GGUF file that says it is of the type 'adapter', no model"),
        ("llama", {}, {"output.weight": (8, 8)}, "the GGUF file does not say how many heads the model has"),
        ("llama", {"llama.attention.head_count": [2, 1]}, {"output.weight": (8, 8)}, "does not say how many heads"),
        ("llama", MODEL, {"blk.0.attn_q.weight": (6, 8)}, "blk.0.attn_q.weight: its 6 rows are not those of 2 heads"),
        (
            "llama",
            MODEL,
            {"output.weight": (8, 8), "blk.0.ffn_gate_exps.weight": (2, 8, 8)},
            "1 tensors that a plain llama model has not: 'blk.0.ffn_gate_exps.weight'",
        ),
        ("llama", {**MODEL, "split.count": 2}, {"output.weight": (8, 8)}, "one of 2 pieces of a GGUF file"),
    ],
)
def test_a_base_in_gguf_that_cannot_be_read(
    model: str, facts: dict[str, Any], tensors: dict[str, tuple[int, ...]], words: str, tmp_path: Path
) -> None:
    write(tmp_path / "base.gguf", model, facts, tensors)
    assert words in refusal(tmp_path, "", "base.gguf")


def test_a_gguf_file_for_other_machines_is_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    write(tmp_path / "base.gguf", "flux", {}, {"fc.weight": (8, 8)}, endianess=gguf.GGUFEndian.BIG)
    assert "for machines that have the highest byte first" in refusal(tmp_path, "", "base.gguf")


def test_rows_in_another_order_need_a_dtype(tmp_path: Path) -> None:
    write(tmp_path / "base.gguf", "llama", MODEL, {"blk.0.attn_q.weight": (8, 8), "output.weight": (8, 8)})
    recipe = b.recipe(tmp_path, base="base.gguf", loras=[], vae=None, output={"dtype": {"model": "keep"}})
    with pytest.raises(LorabakeError, match=r"q_proj\.weight is packed \(reordered F32\)\n.*output\.dtype"):
        lorabake.plan(lorabake.load_recipe(recipe))
    described = inspect(tmp_path / "base.gguf")
    assert described["packed_weights"] == {"reordered F32": 1}


def test_an_embedding_in_gguf_that_is_the_head_too_takes_no_lora(tmp_path: Path) -> None:
    write(tmp_path / "base.gguf", "llama", MODEL, {"token_embd.weight": (20, 8)})
    write(
        tmp_path / "lora.gguf",
        "llama",
        ADAPTER,
        {"token_embd.weight.lora_a": (20, 2), "token_embd.weight.lora_b": (8, 2)},
    )
    assert "the model has one tensor for model.embed_tokens and lm_head" in refusal(
        tmp_path, "lora.gguf", "base.gguf"
    )
