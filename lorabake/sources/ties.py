"""Tied embeddings: one tensor that a model uses as input embedding and as output head.

A change of the one tensor is a change of all its uses. A file that says the same change for each of them, as PEFT's
`ensure_weight_tying` writes it, is baked once; one that changes them apart cannot be baked into one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.slots import LoraModule
from lorabake.keymap.table import Component
from lorabake.visible import short_repr, visible

Changes = Mapping[str, list[LoraModule]]
"""What a file has for each use of an embedding, by the name of the use; no use without a change is there."""

_WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMaskedLM")
SHARED = "shared"
"""What models of an encoder and a decoder call the embedding of both."""


@dataclass(frozen=True, slots=True)
class Tie:
    """List the uses of one embedding: `stored` has those with a tensor in the base, the embedding first.

    `named` has the others under each name that they may go by. `heads` names the output heads of both, and `head`
    the one to speak of; there are none where the head is another tensor, and encoder and decoder share the embedding.
    """

    __repr__ = short_repr

    stored: tuple[Module, ...]
    named: tuple[Module, ...]
    heads: frozenset[str]
    head: str

    def use(self, candidates: Iterable[Module]) -> Module | None:
        """Return the use that a LoRA's module is for, by the modules of the base that its name may mean."""
        for module in candidates:
            for use in (*self.named, *self.stored):
                if module.name == use.name or (
                    use in self.stored and module.views.get("weight") == use.views["weight"]
                ):
                    return use
        return None

    def repeated(self, changes: Changes) -> list[LoraModule]:
        """List the modules that repeat another module's change of the tensor.

        They are of uses that are not stored. One is kept if the LoRA has none for the stored use.
        """
        inputs_first = sorted(self.named, key=lambda use: use.name in self.heads)
        modules = [module for use in inputs_first for module in changes.get(use.name, ())]
        return modules if self.stored[0].name in changes else modules[1:]

    def fault(self, changes: Changes, *, alike: bool, loaded: bool = False) -> str | None:
        """Say why these changes cannot be baked; `alike` tells that they are all the same.

        PEFT trains tokens of an embedding in all its uses, and names them once. So it does with what is `loaded` into
        the one tensor.
        """
        if loaded and len(self.stored) == 1:
            return None
        embedding = self.stored[0].name
        apart = [use.name for use in self.stored if use.name not in changes]
        if not self.heads:
            return self._fault_of_copies(changes, apart, alike=alike)
        of_heads = self.heads & changes.keys()
        of_tokens = changes.keys() == {embedding} and all("tokens" in module.slots for module in changes[embedding])
        if of_tokens and apart:
            return (
                "config.json ties it to the output head, whose tokens change, too, "
                f"and {visible(' and '.join(apart))} is stored apart\n"
                "Leave the copy out of the base: transformers does, where it loads and saves one."
            )
        if of_tokens or (alike and of_heads and not apart and changes.keys() - of_heads):
            return None
        remedy = 'say "tie_word_embeddings": false in the base\'s config.json'
        if len(self.stored) == 1:
            key = self.stored[0].views["weight"].keys[0]
            copy = f"save a copy of {visible(key)} as {self.head}.weight in the base"
            remedy = f"{copy} (or as the model's class calls its head), and {remedy}"
        return (
            f"the model has one tensor for {visible(embedding)} and {self.head}, and it changes "
            f"{visible(_how(changes))}\n"
            f"To let them differ, {remedy}."
        )

    def _fault_of_copies(self, changes: Changes, apart: list[str], *, alike: bool) -> str | None:
        embedding, *copies = [use.name for use in (*self.stored, *self.named)]
        stored_apart = [name for name in apart if name != embedding]
        if not stored_apart and (changes.keys() == {embedding} or (alike and changes.keys() >= {*copies})):
            return None
        return (
            f"{visible(', '.join(copies))} are the one tensor {visible(embedding)}, and it changes "
            f"{visible(_how(changes))}\n"
            "One tensor cannot be changed for one use alone: train them together (PEFT's ensure_weight_tying)."
        )


def _how(changes: Changes) -> str:
    return "each otherwise" if len(changes) > 1 else f"{next(iter(changes))} alone"


def find_tie(config: Mapping[str, object], key_map: KeyMap) -> Tie | None:
    """Find the embedding that a base uses more than once, if it has such a one.

    It is the output head, too, where config.json names a model with a head and none is stored, or says that the two
    are one. Encoder and decoder have copies of it whether there is a head or not.
    """
    classes = config.get("architectures") or []
    text = config.get("text_config")
    said = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
    has_head = isinstance(classes, list) and any(str(name).endswith(_WITH_HEAD) for name in classes)
    may_be_head = has_head or (not classes and said is True)
    for component in key_map.architecture.components:
        if component.embeddings and (tie := _tie(component, key_map, may_be_head=may_be_head, said=said is True)):
            return tie
    return None


def _tie(component: Component, key_map: KeyMap, *, may_be_head: bool, said: bool) -> Tie | None:
    listed = _modules(component, key_map).items()
    modules = {name: module for name, module in listed if "weight" in module.views}
    names = [name for name in modules if _ends(name, component.embeddings)]
    names.sort(key=lambda name: _ends(name, component.copies))
    if not names:
        return None
    words = names[0].split(".")
    roots = ["".join(f"{word}." for word in words[:count]) for count in range(len(words))]
    copies = [root + word for root in roots[-1:] for word in component.copies]
    heads = [root + word for root in roots for word in component.heads]
    head = next((name for name in heads if name in modules), None)
    is_head = may_be_head and (head is None or said)
    if not is_head and not any(copy in names for copy in copies) and names[0] != roots[-1] + SHARED:
        return None
    stored = [names[0], *(name for name in copies if name in names[1:]), *([head] if head and is_head else [])]
    absent = [name for name in [*copies, *(heads if is_head and not head else [])] if name not in stored]
    weight = modules[names[0]].views["weight"]
    named = [
        Module(component.name, name, {**(modules[name].views if name in modules else {}), "weight": weight})
        for name in absent
    ]
    uses = (frozenset([head] if head else heads), head or heads[0]) if is_head else (frozenset[str](), "")
    return Tie(tuple(modules[name] for name in stored), tuple(named), *uses)


def _ends(name: str, words: tuple[str, ...]) -> bool:
    return any(f".{name}".endswith(f".{word}") for word in words)


def _modules(component: Component, key_map: KeyMap) -> dict[str, Module]:
    """List a component's modules; a head may lie beside it."""
    outside = {module.name: module for module in key_map.outside if module.component == component.name}
    return {**outside, **key_map.modules.get(component.name, {})}
