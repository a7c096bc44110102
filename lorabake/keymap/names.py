"""Names as texts: numbers written as `N`, wrappers of training removed, differences between trainers removed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from lorabake.visible import and_more

PEFT_ROOT = "base_model.model."
_NUMBER = re.compile(r"(?<![a-zA-Z0-9])\d+")
INDEXED = re.compile(r"(?P<component>\w+):(?P<index>\d+)\Z")

# Path words that training wrappers add: torch.compile, FSDP (new and old), activation checkpointing, Lightning
# Fabric, TorchRec. Data parallel training (DDP, DeepSpeed) adds `module`, which can also be a model's own name.
_WRAPPERS = "orig_mod|fsdp_wrapped_module|fpw_module|checkpoint_wrapped_module|forward_module|dmp_wrapped_module"
WRAPPED = re.compile(rf"(?:\A|(?<=[._]))_(?:{_WRAPPERS})[._]|(?:\A|(?<=\.))base_layer\.")
PARALLEL = re.compile(r"(?:\A|(?<=\.))module\.")
_STEPS = re.compile(rf"(?:\A|(?<=_))(?:{_WRAPPERS}|module)(?:_|\Z)")

# Matches in names that are more than words separated by single dots or underscores.
_UNEVEN = re.compile(rf"[._/]{{2}}|/|\A[._]|[._]\Z|module|{_WRAPPERS}")


def unwrapped(name: str) -> str:
    """Remove the words that training wrappers add."""
    return PARALLEL.sub("", WRAPPED.sub("", name))


def pattern_of(name: str) -> str:
    """Replace the numbers in a name with `N`, except inside words such as `conv1`."""
    return _NUMBER.sub("N", name)


def numbers_of(name: str) -> tuple[int, ...]:
    """List the numbers that `pattern_of` replaces with `N`."""
    return tuple(map(int, _NUMBER.findall(name)))


def patterns(names: Iterable[str]) -> str:
    """Summarise names as patterns: the three most frequent ones, with their counts."""
    counts = Counter(map(pattern_of, names))
    shown = [f"{name} ×{count}" if count > 1 else name for name, count in counts.most_common(3)]
    return and_more(shown, len(counts), "more patterns")


def flatten(name: str) -> str:
    """Write a module's name as in the lists of released models: numbers as `N`, dots as underscores, no wrappers."""
    return _STEPS.sub("", pattern_of(name).replace(".", "_").replace("/", "_"))


def loosened(name: str) -> str:
    """Write a name without what trainers do differently: separators between words, and wrappers of training."""
    if not _UNEVEN.search(name):  # most names are even, and this path takes a fifth of the time
        return name.replace(".", "_")
    return _STEPS.sub("", re.sub(r"[._/]+", "_", name).strip("_")).strip("_")
