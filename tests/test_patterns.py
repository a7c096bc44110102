"""The automaton against Python's `re`, which PEFT asks: the same answers, in bounded time."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from lorabake.baking import plan
from lorabake.errors import FileError
from lorabake.keymap.patterns import Automaton, PatternError, is_quick, matches_whole
from lorabake.recipe import load_recipe
from lorabake.verification.samples.loading import check_configs
from lorabake.verification.samples.refusals import CannotLoadError
from tests import builders as b

ATOMS = (
    "a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", "a*", "b+", "b*?", "(a|b)",
    "(ab)?", "a{1,3}", "b{2}", "(?:a.)*", "^", "$", r"\A", r"\Z", "(a|b.)+", "x??", "(a{2}){0,2}", "|", "[a-c0-9_]",
    "(^a|b)",    "(?P<n>a)", "é", "(|a)*", "()", "[]a]", "[.]", r"[\d.]", "a{,2}",
)  # fmt: skip

ENDLESS = ("(a+)+b", "(a|a)*b", "(a|aa)+b", "(.*a){25}b", "(.*)*b", "((a*)*)*b", "(a?){40}a{40}b", r"(\w+\.)+b")


def asked(patterns: list[str], name: str) -> int | None:
    """Ask as PEFT does (get_pattern_key)."""
    found = (number for number, text in enumerate(patterns) if re.match(rf"(.*\.)?({text})$", name))
    return next(found, None)


def test_it_says_what_re_says() -> None:
    chance = random.Random(0)
    tried = 0
    for _ in range(2500):
        patterns = ["".join(chance.choices(ATOMS, k=chance.randint(1, 5))) for _ in range(chance.randint(1, 3))]
        try:
            for text in patterns:
                re.compile(rf"(.*\.)?({text})$")
        except re.error:
            continue
        automaton = Automaton(patterns)
        for _ in range(5):
            name = "".join(chance.choices("ab.c1_é \n", k=chance.randint(0, 7)))
            assert automaton.first(name) == asked(patterns, name), (patterns, name)
            assert matches_whole(patterns[0], name) == bool(re.fullmatch(patterns[0], name)), (patterns[0], name)
            tried += 1
    assert tried > 5000


REFUSED = {
    r"(a)\1": "a reference to a group", "(?=a)": "looking ahead", "(?<!a)b": "looking ahead or behind",
    r"\ba": "a boundary", "(?i:a)": "flags", "(?i)a": "flags", "(a)?(?(1)b|c)": "a condition",
    "(a{900}){900}": "too large", "a{100000000}": "too large", "a)|(b": "no regular expression", "(": "missing )",
    "[": "unterminated", "(" * 4000 + ")" * 4000: "nested too deeply",
}  # fmt: skip


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda pattern: pattern[:12])
def test_what_is_refused_is_named(pattern: str) -> None:
    with pytest.raises(PatternError, match=re.escape(REFUSED[pattern])):
        Automaton([pattern]).first("a")


@pytest.mark.parametrize("pattern", ENDLESS)
def test_no_pattern_takes_without_end(pattern: str) -> None:
    began = time.process_time()
    assert Automaton([pattern]).first("a" * 3000) is None
    assert matches_whole(pattern, "a" * 3000) is False
    assert time.process_time() - began < 2
    assert not is_quick(pattern)


def test_a_hundred_thousand_modules() -> None:
    parts = ("q_proj", "k_proj", "v_proj", "o_proj")
    names = [f"model.layers.{layer}.self_attn.{part}" for layer in range(25_000) for part in parts]
    began = time.process_time()
    automaton = Automaton([*ENDLESS, r"layers\.(1|2|3)\.", ".*k_proj", *(re.escape(name) for name in names[:1000])])
    found = [automaton.first(name) for name in names]
    assert time.process_time() - began < 4  # one second on an idle machine
    assert found[1] == len(ENDLESS) + 1
    assert found[0] == len(ENDLESS) + 2
    assert found[-2:] == [None, None]


@pytest.mark.parametrize(
    "pattern", [r"model\.layers\..*\.(q|v)_proj", "q_proj", "layers.1.q", r"[0-9]+\.q", "(?:a|b)c"]
)
def test_patterns_that_people_write_are_given_to_peft(pattern: str) -> None:
    assert is_quick(pattern)


WORLD = {"model.layers.0.self_attn.q_proj": (8, 8)}


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_lora_with_such_patterns_is_planned(field: str, pattern: str, tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    slots = {name: b.lora(shape) for name, shape in WORLD.items()}
    patterns = {pattern.replace("a", r"[\w.]"): 2}
    folder = b.peft(tmp_path / "lora", slots, target_modules=["q_proj"], **{field: patterns})
    made = plan(load_recipe(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})))
    with pytest.raises(CannotLoadError, match="may take PEFT without end"):
        check_configs(made.sources.loras[0])
    b.peft(folder, slots, target_modules=pattern)
    made = plan(load_recipe(tmp_path / "recipe.yaml"))
    with pytest.raises(CannotLoadError, match="may take PEFT without end"):
        check_configs(made.sources.loras[0])


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    b.peft(tmp_path / "lora", {name: b.lora(shape) for name, shape in WORLD.items()}, rank_pattern={"(": 2})
    with pytest.raises(
        FileError, match=r"adapter_config.json: the pattern '\(' is no regular expression: missing \)"
    ):
        plan(load_recipe(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"})))
