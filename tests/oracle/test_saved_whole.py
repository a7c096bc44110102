"""Whole tensors that PEFT saves and loads though `modules_to_save` does not name them, against PEFT's own loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from lorabake.keymap.adapter_config import HEADS  # noqa: E402
from lorabake.keymap.peft import EMBEDDINGS  # noqa: E402

SIZES: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 16, "tie_word_embeddings": False, "pad_token_id": 0,
}  # fmt: skip
# task -> models of it, each with the module that its answers come from, and what gets a LoRA.
TASKS = {
    "SEQ_CLS": [
        ("LlamaForSequenceClassification", "LlamaConfig", "score", "q_proj"),
        ("BertForSequenceClassification", "BertConfig", "classifier", "query"),
    ],
    "TOKEN_CLS": [("BertForTokenClassification", "BertConfig", "classifier", "query")],
    "QUESTION_ANS": [("BertForQuestionAnswering", "BertConfig", "qa_outputs", "query")],
}
CAUSAL = [
    ("LlamaForCausalLM", "LlamaConfig", {"model.embed_tokens", "lm_head"}, "q_proj"),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", {"gpt_neox.embed_in", "embed_out"}, "query_key_value"),
]


def same(folder: Path, bake: Any, read: Any, maker: Any, changed: set[str]) -> None:
    """Compare a bake with what PEFT makes of the same files."""
    loaded = peft.PeftModel.from_pretrained(maker.from_pretrained(folder / "base"), folder / "adapter")
    loaded.merge_and_unload().save_pretrained(folder / "merged")
    before, wanted = read(folder / "base"), read(folder / "merged")
    after = read(bake(folder / "base", folder / "adapter"))
    assert after.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(after[key], tensor, rtol=1e-5, atol=1e-6)
    assert changed <= {key.rpartition(".")[0] for key in after if not torch.equal(after[key], before[key])}


def tuned(model: Any, folder: Path, **config: Any) -> Any:
    model.save_pretrained(folder / "base")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **config))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("task", "model"), [(task, model) for task, models in TASKS.items() for model in models])
def test_a_task_saves_its_head_where_the_file_does_not_say_so(
    task: str, model: tuple[str, str, str, str], bake: Any, read: Any, tmp_path: Path
) -> None:
    """As PEFT before 0.5 wrote its configurations: `modules_to_save` null."""
    maker, config, head, target = model
    cls = getattr(transformers, maker)
    trained = tuned(cls(getattr(transformers, config)(**SIZES)), tmp_path, task_type=task, target_modules=[target])
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path / "adapter")
    place = tmp_path / "adapter" / "adapter_config.json"
    said = json.loads(place.read_text())
    assert set(HEADS[task]) <= set(said["modules_to_save"])
    place.write_text(json.dumps(said | {"modules_to_save": None}))
    same(tmp_path, bake, read, cls, {head})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("maker", "config", "saved", "target"), CAUSAL)
def test_embeddings_and_heads_are_loaded_unannounced(
    maker: str, config: str, saved: set[str], target: str, bake: Any, read: Any, tmp_path: Path
) -> None:
    cls = getattr(transformers, maker)
    model = cls(getattr(transformers, config)(**SIZES))
    trained = tuned(model, tmp_path, target_modules=[target])
    with torch.no_grad():
        for layer in (trained.get_input_embeddings(), trained.get_output_embeddings()):
            layer.weight.add_(0.1 * torch.randn_like(layer.weight))
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["modules_to_save"] is None
    assert {name.rpartition(".")[2] for name in saved} <= EMBEDDINGS
    same(tmp_path, bake, read, cls, saved)
