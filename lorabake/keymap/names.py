"""Names as texts: numbers as `N`, without what wraps modules in training, without what trainers differ in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

PEFT_ROOT = "base_model.model."
_NUMBER = re.compile(r"(?<![a-zA-Z0-9])\d+")
INDEXED = re.compile(r"(?P<component>\w+):(?P<index>\d+)\Z")

# What wraps a module while it is trained, and names none: torch.compile, FSDP and its older self, activation
# checkpoints, Lightning Fabric, TorchRec. Data parallel training (DDP, DeepSpeed) calls it `module`, as a model may.
_WRAPPERS = "orig_mod|fsdp_wrapped_module|fpw_module|checkpoint_wrapped_module|forward_module|dmp_wrapped_module"
WRAPPED = re.compile(rf"(?:\A|(?<=[._]))_(?:{_WRAPPERS})[._]|(?:\A|(?<=\.))base_layer\.")
PARALLEL = re.compile(r"(?:\A|(?<=\.))module\.")
_STEPS = re.compile(rf"(?:\A|(?<=_))(?:{_WRAPPERS}|module)(?:_|\Z)")

# What a name has that is more than words with one dot or underscore between them.
_UNEVEN = re.compile(rf"[._/]{{2}}|/|\A[._]|[._]\Z|module|{_WRAPPERS}")


def unwrapped(name: str) -> str:
    """Write a name without what wraps modules in training before its prefix."""
    return PARALLEL.sub("", WRAPPED.sub("", name))


def pattern_of(name: str) -> str:
    """Write a name with its numbers as `N`; those in words like `conv1` stay."""
    return _NUMBER.sub("N", name)


def numbers_of(name: str) -> tuple[int, ...]:
    """List the numbers that `pattern_of` writes as `N`."""
    return tuple(map(int, _NUMBER.findall(name)))


def patterns(names: Iterable[str]) -> str:
    """List names by their patterns, the most frequent three with their counts."""
    counts = Counter(map(pattern_of, names))
    shown = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in counts.most_common(3))
    return shown + (f" and {len(counts) - 3} more patterns" if len(counts) > 3 else "")


def flatten(name: str) -> str:
    """Write a module's name as the lists of released models do: numbers as `N`, dots as underscores, no wrappers."""
    return _STEPS.sub("", re.sub(r"[./]", "_", pattern_of(name)))


def loosened(name: str) -> str:
    """Write a name without what trainers differ in: what separates its words, and what wraps modules in training."""
    if not _UNEVEN.search(name):  # as most are: a fifth of the time
        return name.replace(".", "_")
    return _STEPS.sub("", re.sub(r"[._/]+", "_", name).strip("_")).strip("_")
