"""Yield a plan's notes beside ledgers and figures: weights that are decoded, widened, left out or left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from lorabake.planning.steps import Step, Touched
from lorabake.planning.storage import Storage
from lorabake.sources import Sources
from lorabake.sources.family import GENERIC
from lorabake.sources.translation import left_out_of


def notes_of(sources: Sources, storage: Storage, touched: Touched, steps: Iterable[Step]) -> Iterator[str]:
    """Yield the notes of a plan."""
    if sources.key_map.architecture.name == GENERIC and sources.loras:
        yield "no table knows the base's family: modules are matched by the base's own names and their shapes"
    ways = Counter(info.title for info in {info.key: info for info in storage.decoded.values()}.values())
    for key, info in storage.grown.items():
        before, after = (" × ".join(map(str, grown.shape)) for grown in (info.first, info))
        yield f"{key} grows from {before} to {after}, as a LoRA asks"
        del ways[info.title]
    yield from _left(sources)
    if ways:
        told = ", ".join(f"{count} {way}" for way, count in ways.most_common())
        yield f"decoded into plain weights: {told}"
    cautions = (info.codec.caution for info in storage.decoded.values() if info.key in touched)
    yield from dict.fromkeys(caution for caution in cautions if caution)
    if left_out := left_out_of(sources.base):
        yield f"left out, since transformers works it out anew: {', '.join(left_out)}"
    ema = sum(key.startswith("model_ema.") for key in sources.base.tensors)
    if ema and sources.loras:
        yield f"the base's {ema} EMA copies (model_ema.*) stay as they are; programs that load them see no LoRA"
    is_drawn = any(target.is_drawn for step in steps for target in step.targets)
    if sources.recipe.output.rounding.is_drawn and not is_drawn:
        yield "rounding: stochastic changes nothing here: nothing is rounded to 16 or 8 bits"


def _left(sources: Sources) -> Iterator[str]:
    """Yield notes on weights that output.dtype leaves as they are, because they cannot be decoded."""
    wanted = sources.recipe.output.dtype
    components = wanted if isinstance(wanted, dict) else {}
    left = {
        key: strange
        for key, strange in sources.packing.strange.items()
        if wanted != "keep" and (not components or _component(sources, strange.parts) in components)
    }
    for title, count in Counter(strange.title for strange in left.values()).most_common():
        first = next(key for key, strange in left.items() if strange.title == title)
        stay = f"{count} weight{'s stay as they are' if count > 1 else ' stays as it is'}"
        yield f"{stay}, since this version cannot decode {title}: {first}{' …' * (count > 1)}"


def _component(sources: Sources, keys: Iterable[str]) -> str:
    owner = sources.key_map.owner
    return next((owner[key] for key in keys if key in owner), "")
