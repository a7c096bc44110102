"""Sum a plan up for people in Python: in one line, and as tables for a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lorabake.visible import at_a_glance, counted, counted_as, size_of

if TYPE_CHECKING:
    from lorabake.notebook import Table
    from lorabake.planning import Plan
    from lorabake.recipe import Lora


def line_of(plan: Plan) -> str:
    """Say what a plan writes: 'out.safetensors' (11.5 MB): 2 LoRAs; 217 tensors baked, 679 copied."""
    computed = sum(len(step.targets) for step in plan.steps)
    tensors = sum(len(file.targets) for file in plan.files)
    loras = counted_as(len(plan.ledgers), "LoRA")
    name = at_a_glance(plan.path.name)
    return f"{name} ({size_of(plan.size)}): {loras}; {computed} of {counted_as(tensors, 'tensor')} baked"


def card_of(plan: Plan) -> str:
    """Show a plan as HTML: where it leads, and what becomes of each LoRA."""
    from lorabake.notebook import card

    return card("Plan", line_of(plan), tables_of(plan))


def strength_of(lora: Lora) -> str:
    """Write a LoRA's strength as the recipe says it: 0.8; unet 0.5, text_encoder 0.2; 0.8 × blocks."""
    one = lora.strength
    said = ", ".join(f"{name} {value:g}" for name, value in one.items()) if isinstance(one, dict) else f"{one:g}"
    return f"{said} × blocks" if lora.blocks else said


def tables_of(plan: Plan, kept: Mapping[int, float] | None = None) -> Iterator[Table]:
    """List what becomes of each LoRA's tensors, then notes; `kept` are the shares that survive, by LoRA."""
    from lorabake.notebook import Table
    from lorabake.planning.cautions import percent

    heads = ("LoRA", "strength", "applied", "modules", "kinds", "rank", "left out", *(("survives",) if kept else ()))
    rows = [
        (
            ledger.lora,
            strength_of(plan.sources.recipe.loras[number]),
            f"{ledger.applied} of {ledger.tensors}",
            counted(ledger.modules),
            counted(ledger.kinds),
            "/".join(map(str, sorted(ledger.ranks))),
            "; ".join(f"{count}: {reason}" for reason, count in ledger.excluded.items()),
            *((percent(kept[number]) if number in kept else "",) if kept else ()),
        )
        for number, ledger in enumerate(plan.ledgers)
    ]
    yield Table("What becomes of each LoRA's tensors", heads, rows)
    yield Table(
        "Learned embeddings, each in a file of its own",
        ("file", "token"),
        [(embedding.path.name, embedding.token) for embedding in plan.embeddings],
    )
    notes = [(ledger.lora, note) for ledger in plan.ledgers for note in ledger.notes]
    yield Table("Notes", ("about", "note"), [*notes, *(("the output", note) for note in plan.notes)])
