"""Write what a bake is asked to tell of its output: the statement of how it was made, and the model card.

What writes them is imported where it is asked for, so that other bakes begin no later.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorabake.cli.places import check_apart, check_writable, taken_by
from lorabake.cli.progress import Bar
from lorabake.errors import RecipeError
from lorabake.planning import Plan
from lorabake.writing.cards import CARD, SUFFIX

LEAVE_OUT = "Nothing was baked. Move it, or leave out --card: --overwrite of a bake replaces the checkpoint only."


@dataclass(frozen=True, slots=True)
class Accounts:
    """Say what is to be written about an output once it is complete, and with which date."""

    provenance: bool = False
    card: bool = False
    date: str = ""

    @classmethod
    def asked(cls, plan: Plan, *, provenance: bool, card: bool, date: str | None) -> Accounts:
        """Check what was asked for before the bake takes its time.

        Raise RecipeError for a date of nothing, TargetError where a file would have to be replaced that is not
        lorabake's.
        """
        if date is not None and not provenance:
            raise RecipeError("--date is the date in a statement of provenance", "Give --provenance, too.")
        ended = ""
        if provenance:
            from lorabake.artifacts.statement import check_replaceable, statement_path, timestamp

            ended = timestamp(date or "")
            place = statement_path(plan.path, is_folder=plan.is_folder)
            check_writable_later(place, "statement")
            check_apart([place], "statement", taken_by(plan), [plan.path])
            check_replaceable(place)
        if card:
            from lorabake.artifacts.card import check_place

            place = plan.path / CARD if plan.is_folder else plan.path.with_suffix(SUFFIX)
            check_writable_later(place, "card")
            check_apart([place], "card", taken_by(plan), [])
            check_place(place, place, advice=LEAVE_OUT)
        return cls(provenance, card, ended)

    def write(self, plan: Plan, *, talks: bool) -> dict[str, Path]:
        """Write it, with a progress bar if `talks`; return the files by what they are called."""
        written: dict[str, Path] = {}
        if self.provenance:
            from lorabake.artifacts.statement import write_statement

            bar = Bar(shown=talks)
            bar.begin("digesting", _bytes_of(plan))
            try:
                written["statement"] = write_statement(plan, date=self.date, progress=bar.advance)
            finally:
                bar.close()
        if self.card:
            from lorabake.artifacts.card import card_of, write_card
            from lorabake.documents import fields_of
            from lorabake.planning.record import record_of

            loras = record_of(plan).loras
            card = card_of(plan.path, loras=[fields_of(lora) for lora in loras])
            written["card"] = write_card(card)
        return written


def check_writable_later(place: Path, what: str) -> None:
    """Raise TargetError for a file that cannot be written; a folder that the bake makes may be missing yet."""
    if place.parent.is_dir():
        check_writable(place, what)


def _bytes_of(plan: Plan) -> int:
    from lorabake.artifacts.files import input_parts, output_parts

    paths = {part.path for part in output_parts(plan, plan.path)} | {part.path for part in input_parts(plan)}
    return sum(path.stat().st_size for path in paths)
