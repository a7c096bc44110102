"""What a configuration says, as values of the types that kinds ask for; what is of another type is not said."""

from __future__ import annotations

import pytest

from lorabake.keymap.adapter_config import read_config
from lorabake.keymap.said import Said

FIELDS = {
    "r": 4, "alpha": 0.5, "seed": -1, "zero": 0, "true": True, "false": False, "none": None, "word": "qr",
    "digits": "4", "large": 10**400, "nan": float("nan"), "empty": [], "inner": {"count": 3, "deep": {"count": 2}},
    "64 bits": 1 << 64,
}  # fmt: skip
SAID = Said("fc", FIELDS)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        (("r",), 4),
        (("inner", "count"), 3),
        (("inner", "deep", "count"), 2),
        (("zero",), None),
        (("seed",), None),
        (("true",), None),
        (("digits",), None),
        (("alpha",), None),
        (("r", "count"), None),
        (("nothing",), None),
    ],
)
def test_a_count_is_a_whole_number_above_0(names: tuple[str, ...], count: int | None) -> None:
    assert SAID.count(*names) == count


@pytest.mark.parametrize("name", ["true", "none", "word", "digits", "empty", "large", "nan", "nothing"])
def test_a_number_that_has_to_be_said_is_finite(name: str) -> None:
    assert SAID.number("alpha") == 0.5
    assert SAID.number("r") == 4
    with pytest.raises(ValueError, match=f"no adapter_config.json says {name}, a finite number"):
        SAID.number(name)


@pytest.mark.parametrize("name", ["true", "alpha", "digits", "none", "64 bits", "nothing"])
def test_a_seed_is_one_that_torch_takes(name: str) -> None:
    assert SAID.seed("seed") == -1
    with pytest.raises(ValueError, match=f"no adapter_config.json says {name}, a whole number of 64 bits"):
        SAID.seed(name)


def test_what_is_not_there_and_what_is_of_another_type_are_told_apart() -> None:
    assert [SAID.integer(name, 64) for name in ("r", "nothing", "true", "none")] == [4, 64, None, None]
    assert [SAID.text(name) for name in ("word", "r", "nothing")] == ["qr", "", ""]
    assert [SAID.is_set(name) for name in ("true", "r", "zero", "false", "empty", "nothing")] == [
        True,
        True,
        *[False] * 4,
    ]
    assert [SAID.has(name) for name in ("none", "nothing")] == [True, False]


def test_a_modules_own_numbers_stand_in_their_fields() -> None:
    patterns = {"rank_pattern": {"fc": 8}, "n_frequency_pattern": {"fc": 9}}
    config = read_config({"r": 4, **patterns}, "c", {"LORA": frozenset({"r", *patterns})})
    assert [config.said_of(module).count("r") for module in ("a.fc", "a.other")] == [8, 4]
    assert [config.said_of(module).count("n_frequency") for module in ("a.fc", "a.other")] == [9, None]
    assert config.said_of("a.fc").module == "a.fc"
