"""Sampling in words: what its progress calls the models, which models write text, and what libraries do not say."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabake.verification.samples.texts import is_language_model
from lorabake.verification.samples.values import MODELS, in_words


def test_progress_names_the_models_in_words() -> None:
    told = [in_words(name) for name in (*MODELS, "without 0", "without 11", "sweep 0.5")]
    assert told[-3:] == ["without LoRA 1", "without LoRA 12", "strengths times 0.5"]
    assert "rounded" in in_words("floor")
    assert len({*told}) == len(told)


@pytest.mark.parametrize(
    ("config", "key", "writes"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "x", True),
        ({"model_type": "llama"}, "model.embed_tokens.weight", True),
        ({"model_type": "gpt2"}, "wte.weight", True),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, "model.embed_tokens.weight", False),
        ({"model_type": "clip_text_model"}, "text_model.embeddings.token_embedding.weight", False),
        ({"_class_name": "UNet2DConditionModel"}, "lm_head.weight", False),
        ({}, "lm_head.weight", False),
    ],
)
def test_a_language_model_is_known_without_the_name_of_its_class(
    config: dict[str, Any], key: str, writes: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = SimpleNamespace(is_folder=True, path=tmp_path, tensors={key: None})
    plan: Any = SimpleNamespace(sources=SimpleNamespace(base=base))
    assert is_language_model(plan) is writes


def test_what_a_library_misses_on_this_machine_is_not_printed(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("diffusers")
    from lorabake.verification.samples import _quiet

    before = logging.getLogger("bitsandbytes").level
    with _quiet():
        logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
    assert not caplog.records
    assert logging.getLogger("bitsandbytes").level == before
