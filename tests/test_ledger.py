"""The ledger: closed once from what became of all tensors, checked there, and changed by nothing afterwards."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from lorabake.errors import INTERNAL, InternalError
from lorabake.keymap.embeddings import Vectors
from lorabake.matching.ledger import FOR_NONE, RANK_0, Counts, Ledger, close
from lorabake.matching.outcomes import Outcome, Refusal, Why
from tests import builders as b
from tests.tables import infos
from tests.test_matching import match, peft

PLAIN = {"r": 2, "lora_alpha": 2}


def vectors(token: str, name: str) -> Vectors:
    return Vectors(token, name, infos({name: (2, 8)})[name])


def test_a_ledger_counts_what_became_of_all_tensors() -> None:
    outcomes = [
        Outcome("a", applied=2),
        Outcome("b", excluded={RANK_0: 3}),
        Outcome("c", applied=2, excluded={"strength 0": 1}),
        Outcome("", excluded={FOR_NONE: 1}),
        Outcome("d", excluded={RANK_0: 1}),
        *(Outcome(name, vectors=vectors(token, name)) for token in ("x", "y") for name in ("clip_l", "clip_g")),
    ]
    ledger = close("style", 14, outcomes, "Flux.1", ["so"])
    assert ledger.is_balanced
    assert (ledger.lora, ledger.tensors, ledger.family, ledger.notes) == ("style", 14, "Flux.1", ("so",))
    assert ledger.applied == 4
    assert [*ledger.excluded.items()] == [(RANK_0, 4), ("strength 0", 1), (FOR_NONE, 1)]
    assert [(learned.token, len(learned.vectors)) for learned in ledger.embeddings] == [("x", 2), ("y", 2)]


@pytest.mark.parametrize("tensors", [3, 5])
def test_a_ledger_that_does_not_balance_is_a_fault_of_lorabakes_own(tensors: int) -> None:
    with pytest.raises(InternalError) as caught:
        close("style", tensors, [Outcome("a", applied=3), Outcome("b", excluded={RANK_0: 1})], None, [])
    assert caught.value.exit_code == INTERNAL
    assert caught.value.lines == (
        f"lorabake failed: LoRA 'style': not all of its {tensors} tensors are accounted for once: 3 are applied, "
        "1 left out, 0 learned embeddings",
        "This is a fault of lorabake's own. Please report it, with what LORABAKE_DEBUG=1 shows.",
    )


def test_a_refused_module_is_not_accounted_for() -> None:
    outcome = Outcome("a", refusal=Refusal("a", Why.PLACELESS))
    with pytest.raises(InternalError):
        close("style", 2, [outcome], None, [])


def test_nothing_changes_a_ledger() -> None:
    _, ledger = match(peft("fc", 6, 5), config=PLAIN)
    for name in ("applied", "excluded", "notes", "family"):
        with pytest.raises(FrozenInstanceError):
            setattr(ledger, name, None)
    for counts in (ledger.modules, ledger.kinds, ledger.ranks, ledger.excluded):
        with pytest.raises(TypeError):
            counts["x"] = 1  # type: ignore[index]
        assert counts["never met"] == 0  # type: ignore[index]
        assert "never met" not in counts
    assert ledger == match(peft("fc", 6, 5), config=PLAIN)[1]
    assert pickle.loads(pickle.dumps(ledger)) == ledger


def test_counts_do_not_change_with_what_they_were_made_of() -> None:
    counted = {"a": 2}
    counts = Counts(counted)
    counted["a"] = 3
    assert counts == {"a": 2}
    assert Counts(["b", "a", "b"]) == {"b": 2, "a": 1}
    assert [*Counts(["b", "a", "b"])] == ["b", "a"]
    assert Ledger("style", 0).excluded == {}


def test_matching_the_same_twice_gives_the_same() -> None:
    shapes = peft("fc", 6, 5) | peft("layers.0.q", 4, 4)
    assert match(shapes, config=PLAIN) == match(shapes, config=PLAIN)


BROKEN = """
import sys
from dataclasses import replace
import lorabake.matching as matching
from lorabake.cli import main
place = matching.place
matching.place = lambda candidates, facts: replace(place(candidates, facts), applied=1)
sys.argv = ["lorabake", "plan", "recipe.yaml"]
main()
"""


@pytest.mark.parametrize("debug", [False, True])
def test_the_command_line_tells_it_with_the_exit_code_of_its_own_faults(tmp_path: Path, debug: bool) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.zeros(6, 5)})
    b.kohya(tmp_path / "lora.safetensors", {"fc": b.lora((6, 5), rank=2)})
    b.recipe(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        cwd=tmp_path,
        env={**os.environ, "LORABAKE_DEBUG": "1" if debug else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == INTERNAL, done.stderr
    first, second, *trace = done.stderr.splitlines()
    assert "lorabake failed: LoRA 'lora.safetensors': not all of its 2 tensors are accounted for once" in first
    assert second == "  This is a fault of lorabake's own. Please report it, with what LORABAKE_DEBUG=1 shows."
    assert bool(trace) is debug
