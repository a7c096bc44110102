"""Tied embeddings: one tensor that a model uses as input embedding and as output head.

A change of the one tensor is a change of all its uses. A file that says the same change for each of them, as PEFT's
`ensure_weight_tying` writes it, is baked once; one that changes them apart cannot be baked into one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorabake.adapters.embedding import AS_LINEAR
from lorabake.keymap.spelling import LoraModule
from lorabake.keymap.table import Component, KeyMap, Module
from lorabake.tensors.safetensors import TensorInfo

Changes = Mapping[str, list[LoraModule]]
"""What a file has for each use of an embedding, by the name of the use; no use without a change is there."""

_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
_CHUNK = 1 << 24
"""Bytes of each of two tensors that are compared at a time."""


@dataclass(frozen=True, slots=True)
class Tie:
    """List the uses of one embedding: `stored` has those with a tensor in the base, the embedding first.

    `named` has the others under each name that they may go by. `heads` names the output heads of both, and `head`
    the one to speak of.
    """

    stored: tuple[Module, ...]
    named: tuple[Module, ...]
    heads: frozenset[str]
    head: str

    def use(self, found: Iterable[Module]) -> Module | None:
        """Return the use that a LoRA's module is for, by the modules of the base that its name may mean."""
        for module in found:
            for use in (*self.named, *self.stored):
                if module.name == use.name or (
                    use in self.stored and module.views.get("weight") == use.views["weight"]
                ):
                    return use
        return None

    def repeated(self, changes: Changes) -> list[LoraModule]:
        """List the modules that change a tensor as another one does: those of uses that are not stored, all but one.

        One remains only where the embedding goes by another name, too.
        """
        inputs_first = sorted(self.named, key=lambda use: use.name in self.heads)
        modules = [module for use in inputs_first for module in changes.get(use.name, ())]
        return modules if self.stored[0].name in changes else modules[1:]

    def fault(self, changes: Changes, *, alike: bool) -> str | None:
        """Say why these changes cannot be baked; `alike` tells that they are all the same.

        PEFT trains tokens of an embedding in all its uses, and names them once.
        """
        embedding = self.stored[0].name
        apart = [use.name for use in self.stored if use.name not in changes]
        of_heads = self.heads & changes.keys()
        of_tokens = changes.keys() == {embedding} and all("tokens" in each.slots for each in changes[embedding])
        if of_tokens and apart:
            return (
                "config.json ties it to the output head, whose tokens change, too, "
                f"and {' and '.join(apart)} is stored apart\n"
                "Leave the copy out of the base: transformers does, where it loads and saves one."
            )
        if of_tokens or (alike and of_heads and not apart and changes.keys() - of_heads):
            return None
        how = "each otherwise" if len(changes) > 1 else f"{next(iter(changes))} alone"
        remedy = 'say "tie_word_embeddings": false in the base\'s config.json'
        if len(self.stored) == 1:
            key = self.stored[0].views["weight"].keys[0]
            remedy = f"save a copy of {key} as {self.head}.weight in the base, and {remedy}"
        return (
            f"the model has one tensor for {embedding} and {self.head}, and it changes {how}\n"
            f"To let them differ, {remedy}."
        )


def find_tie(config: Mapping[str, object], key_map: KeyMap) -> Tie | None:
    """Find the embedding that is output head, too, if the base has such a one.

    It has where its config.json names a model with a head and none is stored, or says that the two are one.
    """
    classes = config.get("architectures") or []
    text = config.get("text_config")
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
    has_head = isinstance(classes, list) and any(str(each).endswith(_WITH_HEAD) for each in classes)
    if not has_head and (classes or said is not True):
        return None
    for component in key_map.architecture.components:
        modules = _modules(component, key_map)
        weights = [name for name, module in modules.items() if "weight" in module.views]
        head = next((name for name in weights if component.heads and name.endswith(component.heads)), None)
        if component.embeddings and (head is None or said is True):
            return _tie(component, key_map, head)
    return None


def _tie(component: Component, key_map: KeyMap, head: str | None) -> Tie | None:
    modules = _modules(component, key_map)
    names = [
        name for name, module in modules.items() if name.endswith(component.embeddings) and "weight" in module.views
    ]
    names.sort(key=lambda name: name.endswith(component.copies))
    if not names:
        return None
    words = names[0].split(".")
    roots = ["".join(f"{word}." for word in words[:count]) for count in range(len(words))]
    copies = [root + word for root in roots[-1:] for word in component.copies]
    heads = [root + word for root in roots for word in component.heads]
    weight = modules[names[0]].views["weight"]
    stored = [names[0], *(name for name in copies if name in names[1:]), *([head] if head else [])]
    absent = [name for name in [*copies, *([] if head else heads)] if name not in stored]
    named = [
        Module(component.name, name, {**(modules[name].views if name in modules else {}), "weight": weight})
        for name in absent
    ]
    return Tie(
        tuple(modules[name] for name in stored), tuple(named), frozenset([head] if head else heads), head or heads[0]
    )


def _modules(component: Component, key_map: KeyMap) -> dict[str, Module]:
    """List a component's modules; a head may lie beside it."""
    outside = {module.name: module for module in key_map.outside if module.component == component.name}
    return {**outside, **key_map.modules.get(component.name, {})}


def are_alike(first: LoraModule, other: LoraModule) -> bool:
    """Tell whether two modules of a file hold the same change of one tensor.

    The factors of a head's LoRA are those of the embedding's, turned. Files of which only the header is at hand
    are taken to be alike.
    """
    if AS_LINEAR.keys() <= other.slots.keys():
        first, other = other, first
    turned = AS_LINEAR.keys() <= first.slots.keys() and not AS_LINEAR.keys() <= other.slots.keys()
    names = {slot: AS_LINEAR.get(slot, slot) if turned else slot for slot in first.slots}
    return {*names.values()} == other.slots.keys() and all(
        _are_equal(info, other.slots[names[slot]], turned=names[slot] != slot) for slot, info in first.slots.items()
    )


def _are_equal(first: TensorInfo, other: TensorInfo, *, turned: bool) -> bool:
    shape = first.shape[::-1] if turned else first.shape
    if (first.dtype, shape) != (other.dtype, other.shape):
        return False
    try:
        if not turned:
            return all(one == two for one, two in zip(_chunks(first), _chunks(other), strict=True))
        import numpy as np

        one, two = (
            np.frombuffer(b"".join(_chunks(each)), np.uint8).reshape(*each.shape, -1) for each in (first, other)
        )
        return np.array_equal(one.swapaxes(0, 1), two)
    except FileNotFoundError:
        return True


def _chunks(info: TensorInfo) -> Iterator[bytes]:
    with open(info.file, "rb") as stream:
        stream.seek(info.start)
        for start in range(0, info.nbytes, _CHUNK):
            yield stream.read(min(_CHUNK, info.nbytes - start))
