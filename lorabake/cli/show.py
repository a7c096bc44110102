"""Put ledgers, sizes and tables of facts into words for the commands."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from lorabake.matching.ledger import Ledger
from lorabake.planning import Plan
from lorabake.planning.cautions import percent
from lorabake.planning.files import Embedding
from lorabake.visible import counted, size_of


def shown(path: Path) -> str:
    """Write a path without `..` and links in its folders, relative to the current folder if that is shorter."""
    whole = path.parent.resolve() / path.name
    return min(os.path.relpath(whole), str(whole), key=len)


def rate_of(count: int, seconds: float) -> str:
    """Write bytes per second."""
    return f"{size_of(round(count / max(seconds, 1e-9)))}/s"


def survives(lora: str, share: float) -> str:
    """Say how much of a LoRA's change the output keeps."""
    return f"{lora}: {percent(share)} of its change survives the output's dtype"


LABEL: Final = 10
"""Width of the label that begins each line. It is lorabake's own word, so that no name from a file begins a line."""


def ledger_lines(plan: Plan, number: int) -> Iterator[str]:
    """Tell what became of the tensors of one LoRA of a plan; it is the recipe's by this number, from 0."""
    label = f"lora {number + 1}"
    embeddings = [embedding for embedding in plan.embeddings if embedding.lora == number]
    for line in _ledger_lines(plan.ledgers[number], embeddings):
        yield f"{label:<{LABEL}}{line}"
        label = ""


def _ledger_lines(ledger: Ledger, embeddings: Iterable[Embedding]) -> Iterator[str]:
    ranks = "/".join(str(rank) for rank in sorted(ledger.ranks))
    details = f"{counted(ledger.modules)}; {counted(ledger.kinds)}{f'; rank {ranks}' if ranks else ''}"
    yield f"{ledger.lora}: {ledger.applied} of {ledger.tensors} tensors applied" + (
        f" ({details})" if ledger.applied else ""
    )
    for reason, count in ledger.excluded.items():
        yield f"  {count} left out: {reason}"
    for embedding in embeddings:
        place = f"{embedding.path.name}: the learned embedding of {embedding.token!r}"
        yield f"  {len(embedding.vectors)} written to {place}"
    for note in ledger.notes:
        yield f"  note: {note}"


TITLES = {
    "adapter_beside_the_weights": "an adapter beside the weights",
    "baked_by_lorabake": "baked by lorabake",
    "cannot_be_baked": "cannot be baked",
    "computed_on": "computed on",
    "learned_embeddings": "learned embeddings",
    "names_of": "names of",
    "of_no_known_form": "of no known form",
    "outside_any_component": "outside any component",
    "packed_weights": "packed weights",
    "seen_by": "seen by",
    "trigger_words": "trigger words",
}
"""How facts are called for a person to read, where JSON has another key; keys from files stay as they are."""


def fact_lines(facts: Mapping[str, object]) -> Iterator[str]:
    """Yield facts about a file as lines for a person to read."""
    yield from _fact_lines({TITLES.get(name, name): value for name, value in facts.items()}, "")


def _fact_lines(facts: Mapping[str, object], indent: str) -> Iterator[str]:
    width = max((len(str(name)) for name in facts), default=0)
    for name, value in facts.items():
        label = f"{indent}{name:<{width}}"
        if isinstance(value, dict) and value and all(isinstance(entry, int) for entry in value.values()):
            yield f"{label}  {counted(value)}"
        elif value == {}:
            yield f"{label}  none"
        elif isinstance(value, dict):
            yield f"{indent}{name}"
            yield from _fact_lines(value, indent + "  ")
        elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
            yield f"{indent}{name}"
            for entry in value:
                said = {key: part for key, part in entry.items() if part not in (None, [], {})}
                yield f"{indent}  {json.dumps(said, ensure_ascii=False)}"
        elif value is None:
            continue
        elif isinstance(value, list):
            yield f"{label}  {', '.join(map(str, value))}"
        elif name == "bytes" and isinstance(value, int):
            yield f"{label}  {value:,} ({size_of(value)})"
        elif name == TITLES["cannot_be_baked"]:  # a reason in lorabake's words, perhaps with advice
            yield f"{label}  {'; '.join(str(value).splitlines())}"
        else:
            yield f"{label}  {value}"
