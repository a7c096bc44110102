"""How the loop of lorabake reads prompts: by the state, the zeros and the scores that a configuration says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lorabake.configs import loop_of
from lorabake.configs.tokenizers import padding_of
from lorabake.verification.samples.pictures import Setting, Words, _conditions, encode

SETTING = Setting(steps=1, size=(64, 128), guidance=5.0, device="cpu", factor=8)


class Encoder:
    """Give states of one number for each layer; the second one has an embedding of the whole text, too."""

    def __init__(self, *, projects: bool) -> None:
        self.projects = projects

    def __call__(self, ids: torch.Tensor, *, output_hidden_states: bool) -> SimpleNamespace:
        assert output_hidden_states
        states = [torch.full((2, 3, 4), float(layer)) for layer in (1, 2, 3)]
        out = SimpleNamespace(hidden_states=states, last_hidden_state=torch.full((2, 3, 4), 9.0))
        if self.projects:
            out.text_embeds = torch.full((2, 5), 7.0)
        return out


def read(family: str, names: tuple[str, ...], negative: str) -> Words:
    encoders = {name: Encoder(projects=name.endswith("_2")) for name in names}
    words = {name: lambda *_, **__: SimpleNamespace(input_ids=torch.zeros(2, 3, dtype=torch.long)) for name in names}
    loop = loop_of(family)
    assert loop is not None
    return encode(encoders, words, "a fox", negative, "cpu", loop)


@pytest.mark.parametrize(
    ("family", "names", "state"),
    [
        ("sd1", ("text_encoder",), 9.0),
        ("sd2", ("text_encoder",), 9.0),
        ("sdxl", ("text_encoder", "text_encoder_2"), 2.0),
        ("sdxl_refiner", ("text_encoder_2",), 2.0),
    ],
)
def test_the_state_is_the_familys(family: str, names: tuple[str, ...], state: float) -> None:
    words = read(family, names, "ugly")
    assert words.states.shape == (2, 3, 4 * len(names))
    assert (words.states == state).all()
    assert (words.pooled is None) == ("text_encoder_2" not in names)


@pytest.mark.parametrize(("negative", "first"), [("", 0.0), ("ugly", 2.0)])
def test_no_words_are_zeros_where_a_family_was_trained_so(negative: str, first: float) -> None:
    words = read("sdxl", ("text_encoder", "text_encoder_2"), negative)
    assert words.pooled is not None
    assert (words.states[0] == first).all()
    assert (words.states[1] == 2.0).all()
    assert (words.pooled[0] == 0).all() == (not negative)
    assert (words.pooled[1] == 7.0).all()
    other = read("sdxl_refiner", ("text_encoder_2",), negative)
    assert (other.states[0] == 2.0).all()


def test_what_is_told_beside_the_words() -> None:
    words = Words(torch.zeros(2, 3, 4), torch.zeros(2, 5))
    sizes, scores = loop_of("sdxl"), loop_of("sdxl_refiner")
    assert sizes is not None
    assert scores is not None
    assert _conditions(Words(torch.zeros(2, 3, 4), None), SETTING, sizes) is None
    told = _conditions(words, SETTING, sizes)
    assert told is not None
    assert told["time_ids"].tolist() == [[128, 64, 0, 0, 128, 64]] * 2
    told = _conditions(words, SETTING, scores)
    assert told is not None
    assert told["time_ids"].tolist() == [[128, 64, 0, 0, 2.5], [128, 64, 0, 0, 6.0]]  # what shall not be comes first


def test_tokenizers_pad_as_their_encoders_were_trained() -> None:
    assert padding_of("sd1", "tokenizer") == "<|endoftext|>"
    assert padding_of("sd2", "tokenizer") == "!"
    assert padding_of("sdxl", "tokenizer") == "<|endoftext|>"
    assert padding_of("sdxl", "tokenizer_2") == padding_of("sdxl_refiner", "tokenizer_2") == "!"
