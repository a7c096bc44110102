"""Tied embeddings: what a file says for both uses of one tensor is baked once; what it says apart is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake.baking import plan
from lorabake.errors import LorabakeError
from lorabake.keymap.expansion import KeyMap
from lorabake.sources.family import identify
from lorabake.sources.ties import find_tie
from lorabake.tensors.header import TensorInfo
from tests import builders as b

TOKENS, WIDTH, R = 10, 6, 2
ROOT = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
Tensors = dict[str, torch.Tensor]
TIED = {"model_type": "llama", "tie_word_embeddings": True}


def values(seed: int, *shape: int) -> torch.Tensor:
    return b.Values(seed)(*shape)


@dataclass(frozen=True)
class Change:
    """Hold one change of an embedding as a file has it for the embedding and for a head, and what comes out."""

    embedding: Tensors
    head: Tensors
    config: Mapping[str, object]
    result: torch.Tensor


def base_weight() -> torch.Tensor:
    return values(1, TOKENS, WIDTH)


def whole(seed: int) -> Change:
    weight = values(seed, TOKENS, WIDTH)
    config = {"modules_to_save": ["embed_tokens", "lm_head"]}
    return Change({".weight": weight}, {".weight": weight.clone()}, config, weight)


def low_rank(seed: int) -> Change:
    """Make a LoRA: PEFT has an embedding's A as (r, tokens), and a head's as (r, width)."""
    a, up = values(seed, R, TOKENS), values(seed + 1, WIDTH, R)
    turned = {".lora_A.weight": up.T.contiguous(), ".lora_B.weight": a.T.contiguous()}
    result = base_weight() + 2.0 * (up @ a).T
    return Change({".lora_embedding_A": a, ".lora_embedding_B": up}, turned, {}, result)


def stored_too(seed: int) -> Change:
    """Make a LoRA beside the layer's own weight, as PEFT saves it after the vocabulary was resized."""
    change = low_rank(seed)
    slot = ".base_layer.weight"
    return Change(change.embedding | {slot: base_weight()}, change.head | {slot: base_weight()}, {}, change.result)


def tokens(seed: int) -> Change:
    rows, result = values(seed, 2, WIDTH), base_weight()
    result[[3, 5]] = rows
    slot = ".token_adapter.trainable_tokens_delta"
    config = {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}}
    return Change({slot: rows}, {slot: rows.clone()}, config, result)


CHANGES = {"whole": whole, "low_rank": low_rank, "stored_too": stored_too, "tokens": tokens}


def tensors(module: str, slots: Tensors) -> Tensors:
    return {f"{ROOT}{module}{slot}": tensor for slot, tensor in slots.items()}


def write(
    folder: Path,
    lora: Tensors,
    config: Mapping[str, object] = {},
    base_config: Mapping[str, object] = TIED,
    extra: Mapping[str, torch.Tensor] = {},
    embedding: str = EMBEDDING,
) -> Path:
    """Write a base, with more tensors if asked for, and an adapter that also changes one linear layer."""
    for name in ("base", "adapter"):
        (folder / name).mkdir(exist_ok=True)
    own = {f"{embedding}.weight": base_weight(), "model.layers.0.self_attn.q_proj.weight": values(2, WIDTH, WIDTH)}
    b.save(folder / "base" / "model.safetensors", own | dict(extra))
    (folder / "base" / "config.json").write_text(json.dumps(base_config))
    q = {".lora_A.weight": values(3, R, WIDTH), ".lora_B.weight": values(4, WIDTH, R)}
    b.save(folder / "adapter" / "adapter_model.safetensors", lora | tensors("model.layers.0.self_attn.q_proj", q))
    said = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, **config}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    return b.recipe(folder, base="base", loras=["adapter"], output={"path": "out"})


def baked(recipe: Path, applied: int) -> Tensors:
    """Bake; ask that so many tensors of the adapter are accounted for, which is all of them."""
    (ledger,) = plan(load_recipe(recipe)).ledgers
    assert (ledger.applied, ledger.tensors) == (applied, applied)
    return load_file(b.run(recipe).path / "model.safetensors")


def assert_is(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


# -- one tensor for both --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_said_for_both_uses_is_baked_once(name: str, tmp_path: Path) -> None:
    change = CHANGES[name](7)
    lora = tensors(EMBEDDING, change.embedding) | tensors(HEAD, change.head)
    recipe = write(tmp_path, lora, change.config)
    after = baked(recipe, applied=len(lora) + 2)
    assert after.keys() == {f"{EMBEDDING}.weight", "model.layers.0.self_attn.q_proj.weight"}
    assert_is(after[f"{EMBEDDING}.weight"], change.result)
    verification = verify(load_recipe(recipe), options=VerifyOptions(stages=("structure", "weights")))
    b.assert_right(verification)
    (note,) = plan(load_recipe(recipe)).ledgers[0].notes
    assert note == f"{EMBEDDING} and {HEAD} are one tensor: their change, said for each, is baked once"


@pytest.mark.parametrize("name", CHANGES)
def test_its_strength_is_that_of_one_change(name: str, tmp_path: Path) -> None:
    change = CHANGES[name](7)
    write(tmp_path, tensors(EMBEDDING, change.embedding) | tensors(HEAD, change.head), change.config)
    entry = {"path": "adapter", "strength": 0.5}
    recipe = b.recipe(tmp_path, base="base", loras=[entry], output={"path": "out"})
    after = load_file(b.run(recipe).path / "model.safetensors")[f"{EMBEDDING}.weight"]
    assert_is(after, base_weight() + 0.5 * (change.result - base_weight()))


USES = {  # where transformers has the embedding, and where the head that is tied to it
    "model.embed_tokens": "lm_head",
    "model.language_model.embed_tokens": "lm_head",
    "language_model.model.embed_tokens": "language_model.lm_head",
    "model.decoder.embed_tokens": "proj_out",
    "transformer.word_embeddings": "lm_head",
    "gpt_neox.embed_in": "embed_out",
    "backbone.embeddings": "lm_head",
    "bert.embeddings.word_embeddings": "cls.predictions.decoder",
    "albert.embeddings.word_embeddings": "predictions.decoder",
    "roberta.embeddings.word_embeddings": "lm_head.decoder",
}


@pytest.mark.parametrize("embedding", USES)
def test_each_name_of_the_two_is_known(embedding: str, tmp_path: Path) -> None:
    change = whole(7)
    lora = tensors(embedding, change.embedding) | tensors(USES[embedding], change.head)
    names = {"modules_to_save": [embedding.rpartition(".")[2]]}
    recipe = write(tmp_path, lora, names, extra={"lm_head.bias": values(6, TOKENS)}, embedding=embedding)
    assert_is(baked(recipe, applied=4)[f"{embedding}.weight"], change.result)


@pytest.mark.parametrize(
    ("name", "root", "copies"),
    [
        ("whole", "", ()),
        ("whole", "model.", ("encoder",)),
        ("low_rank", "model.", ()),
        ("low_rank", "", ("encoder", "decoder")),
    ],
)
def test_an_encoder_and_a_decoder_share_it_with_the_head(
    name: str, root: str, copies: tuple[str, ...], tmp_path: Path
) -> None:
    """`copies` are stored apart, as older files have them: then each is changed."""
    change = CHANGES[name](7)
    inputs = [f"{root}shared", f"{root}encoder.embed_tokens", f"{root}decoder.embed_tokens"]
    lora = tensors(HEAD, change.head)
    for each in inputs:
        lora |= tensors(each, {slot: tensor.clone() for slot, tensor in change.embedding.items()})
    stored = {f"{root}{each}.embed_tokens.weight": base_weight() for each in copies}
    config = {"modules_to_save": ["shared"]} if name == "whole" else {}
    classes = {"architectures": ["SomeForConditionalGeneration"], "tie_word_embeddings": True}
    recipe = write(
        tmp_path, lora, {**config, "ensure_weight_tying": True}, classes, stored, embedding=f"{root}shared"
    )
    after = baked(recipe, applied=len(lora) + 2)
    for key in (f"{root}shared.weight", *stored):
        assert_is(after[key], change.result)


# -- two changes are none of one tensor ------------------------------------------------------------------------


def apart(name: str) -> tuple[Tensors, Mapping[str, object]]:
    one, two = CHANGES[name](7), CHANGES[name](8)
    return tensors(EMBEDDING, one.embedding) | tensors(HEAD, two.head), one.config


def alone(name: str, use: str) -> tuple[Tensors, Mapping[str, object]]:
    change = CHANGES[name](7)
    return tensors(use, change.embedding if use == EMBEDDING else change.head), change.config


def one_law_apart(name: str) -> tuple[Tensors, Mapping[str, object]]:
    change = CHANGES[name](7)
    laws = {
        "low_rank": {"alpha_pattern": {"lm_head": 1}},
        "tokens": {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [5, 3]}},
    }
    return tensors(EMBEDDING, change.embedding) | tensors(HEAD, change.head), {**change.config, **laws[name]}


REFUSED = {
    **{f"{name}, apart": (apart(name), "each otherwise") for name in CHANGES},
    **{f"{name}, head alone": (alone(name, HEAD), f"{HEAD} alone") for name in CHANGES},
    **{
        f"{name}, embedding alone": (alone(name, EMBEDDING), f"{EMBEDDING} alone")
        for name in CHANGES
        if name != "tokens"
    },
    **{f"{name}, by one law apart": (one_law_apart(name), "each otherwise") for name in ("low_rank", "tokens")},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_one_tensor_cannot_hold_is_refused_with_a_remedy_that_helps(case: str, tmp_path: Path) -> None:
    (lora, config), how = REFUSED[case]
    recipe = write(tmp_path, lora, config)
    with pytest.raises(LorabakeError) as refused:
        b.run(recipe)
    assert f"the model has one tensor for {EMBEDDING} and {HEAD}, and it changes {how}" in str(refused.value)
    assert f"save a copy of {EMBEDDING}.weight as {HEAD}.weight in the base" in str(refused.value)
    assert not (tmp_path / "out").exists()

    untied = {**TIED, "tie_word_embeddings": False}
    recipe = write(tmp_path, lora, config, untied, {f"{HEAD}.weight": base_weight()})
    after = baked(recipe, applied=len(lora) + 2)
    for use in (EMBEDDING, HEAD):
        is_changed = any(key.startswith(f"{ROOT}{use}.") for key in lora)
        assert is_changed != torch.equal(after[f"{use}.weight"], base_weight())


@pytest.mark.parametrize("pattern", [HEAD, EMBEDDING, "*embed*"])
def test_what_cannot_be_baked_can_be_left_out(pattern: str, tmp_path: Path) -> None:
    lora, config = apart("whole")
    write(tmp_path, lora, config)
    entry = {"path": "adapter", "blocks": {pattern: 0}}
    recipe = b.recipe(tmp_path, base="base", loras=[entry], output={"path": "out"})
    (ledger,) = plan(load_recipe(recipe)).ledgers
    assert (ledger.applied, sum(ledger.excluded.values())) == (2, 2)
    assert_is(load_file(b.run(recipe).path / "model.safetensors")[f"{EMBEDDING}.weight"], base_weight())


# -- a copy that is stored apart ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGES)
def test_a_stored_copy_changes_as_the_embedding_does(name: str, tmp_path: Path) -> None:
    change = CHANGES[name](7)
    lora = tensors(EMBEDDING, change.embedding) | tensors(HEAD, change.head)
    recipe = write(tmp_path, lora, change.config, TIED, {f"{HEAD}.weight": base_weight()})
    after = baked(recipe, applied=len(lora) + 2)
    for use in (EMBEDDING, HEAD):
        assert_is(after[f"{use}.weight"], change.result)


@pytest.mark.parametrize("case", REFUSED)
def test_a_copy_that_readers_take_for_the_embedding_cannot_differ(case: str, tmp_path: Path) -> None:
    (lora, config), how = REFUSED[case]
    recipe = write(tmp_path, lora, config, TIED, {f"{HEAD}.weight": base_weight()})
    with pytest.raises(LorabakeError, match=f'it changes {how}\n.*"tie_word_embeddings": false'):
        b.run(recipe)


def test_tokens_change_in_a_stored_copy_too(tmp_path: Path) -> None:
    lora, config = alone("tokens", EMBEDDING)
    assert_is(baked(write(tmp_path, lora, config), applied=3)[f"{EMBEDDING}.weight"], tokens(7).result)
    recipe = write(tmp_path, lora, config, TIED, {f"{HEAD}.weight": base_weight()})
    with pytest.raises(LorabakeError, match=f"{HEAD} is stored apart\nLeave the copy out"):
        b.run(recipe)


# -- whether there is a tie ----------------------------------------------------------------------------------------

KEYS = ("model.embed_tokens.weight", "model.norm.weight")


@pytest.mark.parametrize(
    ("config", "extra", "is_tied"),
    [
        ({}, (), False),
        ({"tie_word_embeddings": True}, (), True),
        ({"tie_word_embeddings": True, "architectures": []}, (), True),
        ({"tie_word_embeddings": True, "architectures": ["LlamaModel"]}, (), False),
        ({"architectures": ["LlamaForCausalLM"]}, (), True),
        ({"architectures": ["LlamaForCausalLM"]}, ("lm_head.weight",), False),
        ({"architectures": ["RobertaForMaskedLM"]}, ("lm_head.bias",), True),
        ({"tie_word_embeddings": True}, ("lm_head.weight",), True),
        ({"text_config": {"tie_word_embeddings": True}}, (), True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, ("lm_head.weight",), False),
        ({"architectures": "LlamaForCausalLM"}, (), False),
        ({"architectures": None, "text_config": None}, (), False),
    ],
)
def test_config_json_says_what_is_tied(config: dict[str, object], extra: tuple[str, ...], is_tied: bool) -> None:
    here = Path("model.safetensors")
    tensors = {key: TensorInfo(key, key, "F32", (4, 4), here, 0, 64) for key in (*KEYS, *extra)}
    assert (find_tie(config, KeyMap.expand(identify(tensors), tensors)) is not None) == is_tied


# -- what PEFT loads into the one tensor, announced or not ----------------------------------------------------------


@pytest.mark.parametrize("use", [EMBEDDING, HEAD])
def test_an_embedding_saved_unannounced_replaces_the_one_tensor(use: str, tmp_path: Path) -> None:
    saved = {f"{ROOT}{use}.weight": values(5, TOKENS, WIDTH)}
    after = baked(write(tmp_path, saved, {"modules_to_save": None}), applied=3)
    assert_is(after[f"{EMBEDDING}.weight"], saved[f"{ROOT}{use}.weight"])


def test_an_embedding_trained_as_a_copy_for_one_use_is_refused(tmp_path: Path) -> None:
    saved = {f"{ROOT}{HEAD}.weight": values(5, TOKENS, WIDTH)}
    with pytest.raises(LorabakeError, match=f"it changes {HEAD} alone"):
        b.run(write(tmp_path, saved, {"modules_to_save": [HEAD]}))


# -- an encoder and a decoder with one embedding, beside a head of its own ------------------------------------------

OWN_HEAD = {"lm_head.weight": values(2, TOKENS, WIDTH)}
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": False}
BOTH = ("encoder.embed_tokens", "decoder.embed_tokens")


def on_t5(folder: Path, saved: Tensors) -> Path:
    return write(folder, saved, {"modules_to_save": ["embed_tokens"]}, T5, OWN_HEAD, "shared")


def test_copies_of_a_shared_embedding_are_baked_once(tmp_path: Path) -> None:
    change = values(5, TOKENS, WIDTH)
    after = baked(on_t5(tmp_path, {f"{ROOT}{use}.weight": change.clone() for use in BOTH}), applied=4)
    assert_is(after["shared.weight"], change)
    assert torch.equal(after["lm_head.weight"], OWN_HEAD["lm_head.weight"])


@pytest.mark.parametrize("uses", [BOTH[:1], BOTH])
def test_a_shared_embedding_is_not_changed_for_one_use(uses: tuple[str, ...], tmp_path: Path) -> None:
    saved = {f"{ROOT}{use}.weight": values(5 + seed, TOKENS, WIDTH) for seed, use in enumerate(uses)}
    with pytest.raises(LorabakeError, match="One tensor cannot be changed for one use alone"):
        b.run(on_t5(tmp_path, saved))


@pytest.mark.parametrize("name", ["layers.0.ffn_output", "layers.0.proj_out", "visual.output"])
def test_what_ends_like_a_head_elsewhere_is_none(name: str) -> None:
    tensors = {
        key: TensorInfo(key, key, "F32", (TOKENS, WIDTH), Path("base"), 0, 0)
        for key in (f"{EMBEDDING}.weight", f"{name}.weight")
    }
    tie = find_tie(TIED, KeyMap.expand(identify(tensors), tensors))
    assert tie is not None
    assert [use.name for use in tie.stored] == [EMBEDDING]
