"""Put ledgers, sizes and tables of facts into words for the commands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from lorabake.matching.ledger import Ledger
from lorabake.planning import Plan
from lorabake.planning.cautions import percent
from lorabake.planning.files import Embedding
from lorabake.planning.links import few, links_in
from lorabake.planning.summary import strength_of
from lorabake.settings import LINK
from lorabake.visible import counted, counted_as, size_of
from lorabake.writing.linking import linkable, saving_of


def shown(path: Path) -> str:
    """Write a path without `..` and links in its folders, relative to the current folder if that is shorter."""
    whole = path.parent.resolve() / path.name
    return min(os.path.relpath(whole), str(whole), key=len)


def new_folder(plan: Plan, output: Path | None) -> tuple[str, ...]:
    """Say which folder a bake to the path of an option would make: its name may be a slip."""
    folder = plan.path.parent
    return () if output is None or folder.is_dir() else (f"the folder {shown(folder)} is new, and will be made",)


def rate_of(count: int, seconds: float) -> str:
    """Write bytes per second."""
    return f"{size_of(round(count / max(seconds, 1e-9)))}/s"


def survives(lora: str, share: float) -> str:
    """Say how much of a LoRA's change the output keeps."""
    return f"{lora}: {percent(share)} of its change survives the output's dtype"


def link_lines(plans: Sequence[Plan]) -> Iterator[str]:
    """Say how much less plans without links would write with them."""
    able = [(plan, files) for plan in plans if not links_in(plan) and (files := linkable(plan))]
    if able:
        count = counted_as(sum(len(files) for _, files in able), "file")
        named = few(able[0][1]) if len(plans) == 1 else count
        saved = size_of(sum(saving_of(plan) for plan, _ in able))
        yield f"{'link':<{LABEL}}{LINK} would link {named} to the base, not copy: {saved} less to write"


def unlinkable(plans: Sequence[Plan]) -> str:
    """Warn of links that cannot be made; return nothing where all can."""
    count = sum(len(links) - len(linkable(plan)) for plan in plans if (links := links_in(plan)))
    files = counted_as(count, "file")
    return f"the base lies on another disk, so {files} will be copied, not linked" if count else ""


LABEL: Final = 10
"""Width of the label that begins each line. It is lorabake's own word, so that no name from a file begins a line."""


def ledger_lines(plan: Plan, number: int) -> Iterator[str]:
    """Tell what became of the tensors of one LoRA of a plan; it is the recipe's by this number, from 0."""
    label = f"lora {number + 1}"
    embeddings = [embedding for embedding in plan.embeddings if embedding.lora == number]
    for line in _ledger_lines(plan.ledgers[number], strength_of(plan.sources.recipe.loras[number]), embeddings):
        yield f"{label:<{LABEL}}{line}"
        label = ""


def _ledger_lines(ledger: Ledger, strength: str, embeddings: Iterable[Embedding]) -> Iterator[str]:
    ranks = "/".join(str(rank) for rank in sorted(ledger.ranks))
    details = f"{counted(ledger.modules)}; {counted(ledger.kinds)}{f'; rank {ranks}' if ranks else ''}"
    yield f"{ledger.lora} at {strength}: {ledger.applied} of {ledger.tensors} tensors applied" + (
        f" ({details})" if ledger.applied else ""
    )
    for reason, count in ledger.excluded.items():
        yield f"  {count} left out: {reason}"
    for embedding in embeddings:
        place = f"{embedding.path.name}: the learned embedding of {embedding.token!r}"
        yield f"  {len(embedding.vectors)} written to {place}"
    for note in ledger.notes:
        yield f"  note: {note}"
