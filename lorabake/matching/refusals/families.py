"""Refuse LoRAs of the wrong family."""

from __future__ import annotations

from collections.abc import Iterable

from lorabake.architectures import architectures
from lorabake.keymap.table import Architecture
from lorabake.matching.family import Strangers
from lorabake.matching.names import BaseNames, nearest_words
from lorabake.sources.family import GENERIC
from lorabake.sources.recognition import Evidence, find_family, kinship, titles


def said_family_is_unknown(trained_on: str | None) -> tuple[str, ...] | None:
    """Refuse a recipe that says a LoRA was trained on a family which has no bases."""
    family = find_family(trained_on) if trained_on is not None else None
    if trained_on is None or (family is not None and family.name != GENERIC):
        return None
    known = sorted(family.name for family in architectures() if family.components and family.name != GENERIC)
    return (f"trained_on: no family is called {trained_on!r}{nearest_words(trained_on, known)}",)


def modules_are_not_of_the_said_family(
    family: Architecture | None, evidence: Evidence, modules: Iterable[str]
) -> tuple[str, ...] | None:
    """Refuse a recipe that names a family which cannot have the LoRA's modules."""
    could_be = evidence.could_be
    if family is None or not could_be or family in could_be or evidence.is_text:
        return None
    return (
        f"trained_on says {family.title}, and its modules are those of {titles(could_be)} "
        f"(such as {evidence.seen_by(modules)})",
    )


def lora_is_another_familys(strangers: Strangers, base: BaseNames) -> tuple[str, ...] | None:
    """Refuse another family's LoRA, unless that family's LoRAs also go onto this base."""
    families = strangers.families
    if not families or any(kinship(family, base.key_map.architecture) for family in families):
        return None
    return (
        f"is for {titles(families)} (by {strangers.seen_by}); the base is {base.title}",
        f"To bake it there all the same, add to this LoRA: trained_on: {families[0].name}",
    )
