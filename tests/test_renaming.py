"""Names on the disk and in memory: renamings both ways, and bases and LoRAs of different versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabake.architectures import architectures
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.names import PEFT_ROOT
from lorabake.keymap.renaming import Fused, Pair, Rename, Renaming, _renamed, models_called, versions
from lorabake.keymap.spelling import Spellings
from lorabake.keymap.view import Region, View
from lorabake.sources.family import identify, models_of
from tests import builders as b
from tests.tables import infos, load_table
from tests.tables import names as tables


def whole(name: str, rows: int = 4, columns: int = 2) -> View:
    return View((Region(name, 0, rows),), (rows, columns))


def named(*names: str, rows: int = 4) -> dict[str, View]:
    return {name: whole(name, rows) for name in names}


def renamed(name: str, pair: Pair) -> str:
    (found,) = _renamed(named(name), "", [pair])
    return found


# -- one rule --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rename", "stored", "memory"),
    [
        (Rename("encoder.layer.", "layers."), "vit.encoder.layer.3.norm.weight", "vit.layers.3.norm.weight"),
        (Rename("^vision_tower", "model.vision_tower"), "vision_tower.x.weight", "model.vision_tower.x.weight"),
        (Rename("^text_model.", ""), "text_model.encoder.x.weight", "encoder.x.weight"),
        (Rename("^model.(?!text_model.)", "model.text_model."), "model.x.bias", "model.text_model.x.bias"),
        (Rename("block.{}.fc", "{}.mlp.fc1"), "block.12.fc.weight", "12.mlp.fc1.weight"),
        (Rename("linear_{}", "layers.{}.projection"), "tower.linear_7.weight", "tower.layers.7.projection.weight"),
        (Rename("(?<!psp.{}.)bn.", "normalization."), "x.bn.weight", "x.normalization.weight"),
        (Rename("^", "model."), "backbone.x.weight", "model.backbone.x.weight"),
        (Rename("LayerNorm.gamma", "LayerNorm.weight"), "a.LayerNorm.gamma", "a.LayerNorm.weight"),
    ],
    ids=str,
)  # fmt: skip
def test_a_rename_goes_both_ways(rename: Rename, stored: str, memory: str) -> None:
    assert renamed(stored, rename.forward) == memory
    assert renamed(memory, rename.backward) == stored


@pytest.mark.parametrize(
    ("rename", "name"),
    [
        (Rename("fc1", "up_proj"), "mlp.fc11.weight"),  # a word goes on
        (Rename("^visual", "model.visual"), "model.visual.x.weight"),  # it is not the beginning
        (Rename("^", "model."), "model.x.weight"),  # it is there already
        (Rename("^model(?!.language_model|.visual)", "model.language_model"), "model.visual.x.weight"),
        (Rename("^model(?!.language_model|.visual)", "model.language_model"), "model.language_model.x.weight"),
        (Rename("(?<!psp.{}.)bn.", "normalization."), "psp.1.bn.weight"),
    ],
    ids=str,
)
def test_what_a_rename_does_not_speak_of_keeps_its_name(rename: Rename, name: str) -> None:
    assert renamed(name, rename.forward) == name


def test_the_first_place_alone_is_renamed() -> None:
    assert renamed("norm.norm.weight", Rename("norm.", "ln.").forward) == "ln.norm.weight"


QKV = Fused("attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))


def test_one_stored_tensor_is_several_in_memory_and_the_other_way_round() -> None:
    stored = named("0.attn.qkv.weight", "0.norm.weight", rows=6)
    memory = QKV.forward(stored)
    parts = [f"0.self_attn.{part}_proj.weight" for part in "qkv"]
    assert memory.keys() == {*parts, "0.norm.weight"}
    assert [memory[part].regions for part in parts] == [
        (Region("0.attn.qkv.weight", start, start + 2),) for start in (0, 2, 4)
    ]
    assert QKV.backward(memory) == stored


def test_several_stored_tensors_are_one_in_memory() -> None:
    fused = Fused("gate_up", ("gate", "up"), apart=True)
    stored = named("mlp.gate.weight", "mlp.up.weight")
    memory = fused.forward(stored)
    assert memory["mlp.gate_up.weight"].regions == (Region("mlp.gate.weight", 0, 4), Region("mlp.up.weight", 0, 4))
    assert fused.backward(memory) == stored


@pytest.mark.parametrize(
    "stored",
    [named("attn.qkv.weight", rows=7), named("attn.out.weight"), named("self_attn.q_proj.weight")],
    ids=["rows that three cannot share", "another", "a part alone"],
)
def test_what_cannot_be_split_or_joined_stays(stored: dict[str, View]) -> None:
    assert QKV.forward(stored) == stored
    assert QKV.backward(stored) == stored


# -- a table ---------------------------------------------------------------------------------------------


def test_rules_are_carried_out_in_order_and_backward_in_the_other_one() -> None:
    renaming = Renaming((), (Rename("^audio.", "tower."), Rename("tower.encoder", "tower.embed")), (QKV,))
    stored = named("audio.encoder.weight", "audio.attn.qkv.weight", rows=6)
    (memory,) = renaming.forward(stored)
    assert [name for name in memory if "proj" not in name] == ["tower.embed.weight"]
    assert "tower.self_attn.k_proj.weight" in memory
    assert renaming.backward(memory) == [stored]


def test_a_part_of_a_model_is_renamed_below_its_path() -> None:
    tower = Renaming((), (Rename("^vision_model.", ""),), below=("model.tower.", "tower.", ""))

    def forward(*names: str) -> list[list[str]]:
        return [[*each] for each in tower.forward(named(*names))]

    def backward(*names: str) -> list[list[str]]:
        return [[*each] for each in tower.backward(named(*names))]

    assert forward("tower.vision_model.x.weight", "text.y.weight") == [["tower.x.weight", "text.y.weight"]]
    assert forward("vision_model.x.weight") == [["x.weight"]]
    assert forward("text.y.weight") == []
    assert backward("model.tower.x.weight", "y.weight") == [["model.tower.vision_model.x.weight", "y.weight"]]
    assert backward("x.weight") == [["vision_model.x.weight"]]


def test_each_of_several_parts_is_renamed_by_itself() -> None:
    towers = Renaming((), (Rename("norm", "ln"),), below=("a.", "b."))
    assert [[*each] for each in towers.forward(named("a.norm.weight", "b.norm.weight"))] == [
        ["a.ln.weight", "b.norm.weight"],
        ["a.norm.weight", "b.ln.weight"],
    ]


def test_a_name_that_two_tensors_get_is_neithers() -> None:
    renaming = Renaming((), (Rename("old", "new"),))
    assert renaming.forward(named("old.weight", "new.weight", "x.weight")) == [named("x.weight")]


def test_a_renaming_is_about_models_of_its_sorts() -> None:
    path = Renaming(("vit", "deit"), (Rename("^{model}.", ""),), whole=True)
    assert [read.renames for read in path.of(("deit",))] == [(Rename("^deit.", ""),)]
    assert path.of(("llava", "vit")) == path.of(("llama",)) == path.of(()) == []
    part = Renaming(("vit",), (Rename("a", "b"),))
    assert part.of(("llava", "vit")) == [part]
    assert Renaming((), (Rename("a", "b"),)).of(()) == [Renaming((), (Rename("a", "b"),))]


def test_models_are_those_that_a_configuration_and_its_parts_name() -> None:
    config = {
        "model_type": "llava",
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "siglip"},
    }
    assert models_of({"hidden_size": 8, **config, "extra": {"text": {"model_type": "llama"}}}) == (
        "llava",
        "llama",
        "siglip",
    )
    assert models_of({"model_type": 3, "parts": [{"model_type": "x"}]}) == ()


def test_versions_have_each_table_carried_out_or_not() -> None:
    tables = (
        Renaming(("a",), (Rename("^x", "model.x"),)),
        Renaming(("a",), (Rename("y", "z"),), below=("model.x.", "x.")),
    )
    found = [[*version] for version in versions(named("x.y.weight"), tables, ("a",))]
    assert found == [["model.x.y.weight"], ["x.z.weight"], ["model.x.z.weight"]]
    assert versions(named("x.y.weight"), tables, ("b",)) == []


# -- bases and LoRAs of different versions -----------------------------------------------------------------

Q = "layers.0.self_attn.q_proj"
HEAD = "language_model.lm_head"
# What wrote the names -> text part, vision part, output head.
LLAVA = {
    "transformers 4.30": (f"language_model.model.{Q}", f"vision_tower.vision_model.encoder.{Q}", HEAD),
    "transformers 4.52": (f"model.language_model.{Q}", f"model.vision_tower.vision_model.encoder.{Q}", "lm_head"),
    "transformers 5.8": (f"model.language_model.{Q}", f"model.vision_tower.encoder.{Q}", "lm_head"),
    "transformers 5.10": (f"model.language_model.model.{Q}", f"model.vision_tower.encoder.{Q}", "lm_head"),
    "a file that 5.8 wrote anew": (f"language_model.model.{Q}", f"vision_tower.encoder.{Q}", HEAD),
}


def llava(naming: str) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.weight": (8, 8) for name in LLAVA[naming]}
    return shapes | {key.replace("self_attn.q_proj", "input_layernorm"): (8,) for key in shapes if "language" in key}


def found_in(shapes: Mapping[str, tuple[int, ...]], models: tuple[str, ...], name: str) -> list[tuple[str, ...]]:
    header = infos({**shapes})
    spelled = Spellings(KeyMap.expand(identify(header), header, models))
    return [module.views["weight"].keys for module in spelled.get(PEFT_ROOT + name, ())]


@pytest.mark.parametrize("lora", LLAVA)
@pytest.mark.parametrize("file", LLAVA)
def test_a_vision_language_models_lora_of_any_version_fits_a_file_of_any(file: str, lora: str) -> None:
    for name, own in zip(LLAVA[lora], LLAVA[file], strict=True):
        assert found_in(llava(file), ("gemma3",), name) == [(f"{own}.weight",)], name


@pytest.mark.parametrize(
    ("models", "stored", "name"),
    [
        (("nemotron_h",), "backbone.layers.0.mixer.in_proj", "model.layers.0.mixer.in_proj"),
        (("swin",), "swin.encoder.layers.0.blocks.1.intermediate.dense", "swin.encoder.layers.0.blocks.1.mlp.fc1"),
        (("segformer",), "segformer.encoder.block.0.1.mlp.dense1", "segformer.stages.0.blocks.1.mlp.fc1"),
        (("nomic_bert",), "encoder.layers.0.mlp.fc11", "layers.0.mlp.up_proj"),
        (("vit",), "encoder.layer.0.attention.attention.query", "vit.layers.0.attention.q_proj"),
        (("bert",), "encoder.layer.0.attention.self.query", "bert.encoder.layer.0.attention.self.query"),
        (("xlm-roberta",), "roberta.encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.query"),
        (("qwen2_5_omni_thinker",), "thinker.model.layers.0.fc", "model.language_model.layers.0.fc"),
        (("voxtral",), "audio_tower.layers.0.fc1", "model.audio_tower.layers.0.fc1"),
    ],
    ids=str,
)  # fmt: skip
def test_names_lead_from_the_file_to_memory_and_back(models: tuple[str, ...], stored: str, name: str) -> None:
    assert (f"{stored}.weight",) in found_in({f"{stored}.weight": (8, 8)}, models, name)
    assert (f"{name}.weight",) in found_in({f"{name}.weight": (8, 8)}, models, stored)


def test_fused_layers_go_by_their_parts_names_in_memory(tmp_path: Path) -> None:
    values = b.Values()
    base = {"encoder.layers.0.attn.Wqkv.weight": values(12, 4), "encoder.layers.0.attn.out_proj.weight": values(4, 4)}
    b.save(tmp_path / "base/model.safetensors", base)
    (tmp_path / "base/config.json").write_text(json.dumps({"model_type": "nomic_bert"}))
    slots = b.lora((4, 4))
    b.peft(tmp_path / "lora", {"layers.0.self_attn.k_proj": slots}, lora_alpha=2, r=2)
    b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"}))
    after = load_file(tmp_path / "out/model.safetensors")["encoder.layers.0.attn.Wqkv.weight"]
    wanted = base["encoder.layers.0.attn.Wqkv.weight"].clone()
    wanted[4:8] += b.delta(slots, (4, 4), 1.0)
    torch.testing.assert_close(after, wanted)


# -- what tells a base's sort ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{"model_type": "gemma3"}, {"model_type": "unheard_of"}, {}, None], ids=str)
def test_a_base_whose_configuration_does_not_tell_is_known_by_the_loras_names(
    config: dict[str, str] | None, tmp_path: Path
) -> None:
    values = b.Values()
    base = {key: values(*shape) for key, shape in llava("transformers 4.30").items()}
    b.save(tmp_path / "base/model.safetensors", base)
    if config is not None:
        (tmp_path / "base/config.json").write_text(json.dumps(config))
    slots = {name: b.lora((8, 8)) for name in LLAVA["transformers 5.8"][:2]}
    b.peft(tmp_path / "lora", slots)
    b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"}))
    after = load_file(tmp_path / "out/model.safetensors")
    changed = {key for key in base if not torch.equal(base[key], after[key])}
    assert changed == {f"{name}.weight" for name in LLAVA["transformers 4.30"][:2]}


(LANGUAGE_MODEL, *_) = next(each for each in architectures() if each.name == "generic").components


def test_layers_that_may_lie_in_another_order_are_not_taken_for_others() -> None:
    """Meta and Mistral store wq and wk in another order than transformers has in its q_proj and k_proj."""
    own = named("layers.0.attention.wq.weight", "layers.0.attention.wv.weight", "layers.0.feed_forward.w1.weight")
    for path in ("", "model.", "model.language_model."):
        wanted = [f"{path}layers.0.self_attn.{part}_proj.weight" for part in "qv"]
        assert models_called(own, LANGUAGE_MODEL.renamings, wanted) == ()


def test_a_configuration_goes_before_names() -> None:
    """What is known to be no such model does not get its names."""
    component, own = LANGUAGE_MODEL, named("encoder.layer.0.attention.attention.query.weight")
    assert models_called(own, component.renamings, ["vit.layers.3.attention.q_proj.weight"])
    assert models_called(own, component.renamings, ["encoder.layer.5.attention.attention.query.weight"]) == ()
    assert models_called(own, component.renamings, ["down_blocks.0.attn.weight"]) == ()
    assert (
        found_in({"encoder.layer.0.attention.attention.query.weight": (8, 8)}, ("bert",), "layers.0.attention.q_proj")
        == []
    )


# -- modules outside all components ------------------------------------------------------------------------


def examples() -> dict[str, str]:
    """Map each architecture that has one to a table of a published header, the shortest one."""
    longest_first = sorted(tables("checkpoint"), key=lambda name: -len(load_table(name)))
    return {identify(load_table(name)).name: name for name in longest_first}


@pytest.mark.parametrize("table", sorted(examples().values()))
def test_a_module_outside_all_components_keeps_its_name(table: str) -> None:
    header = load_table(table) | infos({"value_head.summary.weight": (3, 5), "value_head.summary.bias": (3,)})
    architecture = identify(header)
    key_map = KeyMap.expand(architecture, header)
    assert architecture is identify(load_table(table))
    (module,) = (each for each in key_map.named() if each.name.endswith("value_head.summary"))
    assert module.name == "value_head.summary"
    assert module.component in key_map.placed
    assert {name: view.keys for name, view in module.views.items()} == {
        "weight": ("value_head.summary.weight",),
        "bias": ("value_head.summary.bias",),
    }


GPT2 = {"score": (3, 8), "lm_head": (20, 8), "qa_outputs": (2, 8), "value_head.summary": (1, 8)}


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2s_heads_are_trained_and_replaced_by_their_names(prefix: str, tmp_path: Path) -> None:
    values = b.Values(1)
    base = {f"{prefix}{key}": value for key, value in b.gpt2().items()}
    base |= {f"{name}.weight": values(*shape) for name, shape in GPT2.items()}
    b.save(tmp_path / "base/model.safetensors", base)
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": False}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    trained = {name: b.lora(shape) for name, shape in GPT2.items() if name != "score"}
    folder = b.peft(tmp_path / "lora", trained, modules_to_save=["score", "wte"])
    saved = {"transformer.wte": values(20, 8), "score": values(3, 8)}
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors |= {f"{PEFT_ROOT}{name}.weight": value for name, value in saved.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"}))
    after = load_file(tmp_path / "out/model.safetensors")
    wanted = dict(base) | {f"{prefix}wte.weight": saved["transformer.wte"], "score.weight": saved["score"]}
    for name, slots in trained.items():
        wanted[f"{name}.weight"] = (base[f"{name}.weight"] + b.delta(slots, GPT2[name], 1.0)).float()
    assert after.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(after[key], value)
