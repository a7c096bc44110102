"""The ledger of one LoRA records what became of each of its tensors. It is closed once, and checked then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lorabake.errors import InternalError
from lorabake.keymap.embeddings import Vectors
from lorabake.matching.outcomes import Outcome
from lorabake.visible import short_repr

RANK_0 = "rank 0: no effect"
"""Why a module without a rank is left out."""

ALPHA_ALONE = "alpha without a LoRA: no effect"
FOR_NONE = "shared by modules that are left out"

Counted = TypeVar("Counted", bound=Hashable)


def ignored_by(glob: str) -> str:
    """Return the reason of what a glob of the recipe leaves out."""
    return f"ignored by the recipe: {glob!r}"


class Counts(Mapping[Counted, int]):
    """Count things, in the order in which they first occurred; anything else counts 0."""

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[Counted, int] | Iterable[Counted] = ()) -> None:
        self._counts = Counter(counts)

    def __getitem__(self, counted: Counted) -> int:
        return self._counts[counted]

    def __iter__(self) -> Iterator[Counted]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, counted: object) -> bool:
        return counted in self._counts

    def __repr__(self) -> str:
        return repr(dict(self._counts))


@dataclass(frozen=True, slots=True)
class Learned:
    """Hold the learned embedding of one token: one set of vectors for each text encoder."""

    __repr__ = short_repr

    token: str
    vectors: tuple[Vectors, ...]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Count what became of one LoRA's tensors: applied, or excluded by the recipe and why.

    `family` names the families that it may be of, in words, `families` by their names in recipes and documents.
    `embeddings` are learned embeddings, which go to files of their own.
    """

    __repr__ = short_repr

    lora: str
    tensors: int
    family: str | None = None
    families: tuple[str, ...] = ()
    applied: int = 0
    modules: Counts[str] = field(default_factory=Counts)
    kinds: Counts[str] = field(default_factory=Counts)
    ranks: Counts[int] = field(default_factory=Counts)
    excluded: Counts[str] = field(default_factory=Counts)
    embeddings: tuple[Learned, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_balanced(self) -> bool:
        """Tell whether every tensor is accounted for."""
        embedded = sum(len(embedding.vectors) for embedding in self.embeddings)
        return self.applied + sum(self.excluded.values()) + embedded == self.tensors


def close(
    lora: str,
    tensors: int,
    outcomes: Sequence[Outcome],
    family: str | None,
    notes: Iterable[str],
    *,
    families: tuple[str, ...] = (),
) -> Ledger:
    """Enter what became of all tensors of a LoRA; raise InternalError if one is not accounted for."""
    excluded: Counter[str] = Counter()
    vectors: dict[str, list[Vectors]] = {}
    for outcome in outcomes:
        excluded.update(outcome.excluded)
        if outcome.vectors is not None:
            vectors.setdefault(outcome.vectors.token, []).append(outcome.vectors)
    patches = [made for outcome in outcomes for made in outcome.made]
    embeddings = tuple(Learned(token, tuple(parts)) for token, parts in vectors.items())
    ledger = Ledger(
        lora=lora,
        tensors=tensors,
        family=family,
        families=families,
        applied=sum(outcome.applied for outcome in outcomes),
        modules=Counts(outcome.place.component for outcome in outcomes if outcome.place is not None),
        kinds=Counts(made.title for made in patches),
        ranks=Counts(made.rank for made in patches if made.rank is not None),
        excluded=Counts(excluded),
        embeddings=embeddings,
        notes=(*notes,),
    )
    if not ledger.is_balanced:
        raise InternalError(
            f"LoRA {lora!r}: not all of its {tensors} tensors are accounted for once: {ledger.applied} are applied, "
            f"{sum(excluded.values())} left out, {sum(map(len, vectors.values()))} learned embeddings"
        )
    return ledger
