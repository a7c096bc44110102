"""How a checkpoint's weights are stored that are no plain floats, by the weight's key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from lorabake.codecs.codec import Stored, Strange
from lorabake.codecs.plain import plain
from lorabake.tensors.header import TensorInfo
from lorabake.visible import short_repr


@dataclass(frozen=True)
class Packing:
    """Hold how a checkpoint's weights are stored that are no plain floats, by the weight's key.

    Those in `scaled` can be encoded anew, and their tensors stay tensors of the checkpoint. Those in `packed` take
    the place of their tensors. What is `strange` is neither decoded nor cast, even if it is in `packed`, too; `aside`
    are tensors about what goes through a layer, such as the scale of its inputs; `grown` are plain weights that a
    LoRA widens.
    """

    __repr__ = short_repr

    packed: Mapping[str, Stored] = field(default_factory=dict)
    scaled: Mapping[str, Stored] = field(default_factory=dict)
    strange: Mapping[str, Strange] = field(default_factory=dict)
    aside: frozenset[str] = frozenset()
    grown: Mapping[str, Stored] = field(default_factory=dict)

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Collect the keys of all tensors that no cast may touch: they stand for weights, or say how to read them."""
        keys = frozenset(chain.from_iterable(weight.keys for weight in self.known))
        return self.aside.union(keys - self.scaled.keys(), *(strange.parts for strange in self.strange.values()))

    @property
    def known(self) -> list[Stored]:
        """List the weights whose format is known."""
        return [*self.packed.values(), *self.scaled.values()]

    @property
    def titles(self) -> list[str]:
        """Name the format of each weight that is no plain float."""
        known = [weight.title for weight in self.known if weight.key not in self.strange]
        return known + [strange.title for strange in self.strange.values()]

    def logical(self, tensors: Mapping[str, TensorInfo]) -> dict[str, Stored]:
        """Return a checkpoint's tensors as if nothing were packed: each packed weight in its first part's place."""
        owners = {part.key: key for key, weight in self.packed.items() for part in weight.parts.values()}
        found: dict[str, Stored] = {}
        for key, tensor in tensors.items():
            owner = owners.get(key, key)
            if owner not in found:
                found[owner] = self.packed.get(owner) or plain(tensor)
        return found
