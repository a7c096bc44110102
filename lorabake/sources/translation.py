"""LoRAs of torchtune, litgpt and llama.cpp, and language models in GGUF, in transformers' names and order.

Which rows come when depends on the heads of the model, and those are said by configurations; what no file says is not
guessed. Headers and configurations only: tensors are described anew, and read by whoever bakes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from lorabake.codecs.codec import Stored
from lorabake.codecs.plain import plain
from lorabake.dialects import dialects
from lorabake.dialects.llama_cpp import LLAMA_CPP
from lorabake.errors import FileError, MatchError
from lorabake.keymap.dialect import PARTS, Dialect, DialectLora, Facts, Heads, Naming, heads_of
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.reading import numbered
from lorabake.keymap.slots import LoraModule, LoraTensors
from lorabake.keymap.view import join, reordered, turned
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.gguf import MODELS, model_of
from lorabake.tensors.header import TensorInfo
from lorabake.visible import some, visible

LEFT_OUT = "lorabake.left_out"
"""What a transcribed checkpoint says, among its file's facts, of tensors that it has no place for."""

REORDERED = ("up", "magnitude")
"""The slots of a low-rank LoRA that have a row for each of the weight's."""


@dataclass(frozen=True, slots=True)
class Translation:
    """Hold a LoRA's tensors in transformers' order, its configuration, and the base's modules by its own names."""

    tensors: LoraTensors
    config: PeftConfig | None
    modules: tuple[Module, ...] = ()


# -- LoRAs -----------------------------------------------------------------------------------------------


def dialect_of(checkpoint: Checkpoint) -> Dialect | None:
    """Return the dialect of a LoRA's keys, if they are of one."""
    return next((dialect for dialect in dialects() if dialect.speaks(iter(checkpoint.tensors))), None)


def translate(
    name: str,
    checkpoint: Checkpoint,
    tensors: LoraTensors,
    config: PeftConfig | None,
    key_map: KeyMap,
    base: Mapping[str, object],
) -> Translation:
    """Put a LoRA into transformers' order; one that speaks no dialect stays as it is.

    `base` is the base's config.json. Raise MatchError where nothing says how.
    """
    dialect = dialect_of(checkpoint)
    if dialect is None:
        return Translation(tensors, config)
    lora = DialectLora(name, checkpoint, tensors, config, base)
    said = dialect.read(dialect, lora)
    try:
        return _translated(dialect, lora, said, key_map)
    except ValueError as error:
        raise MatchError(
            f"LoRA {name!r}: {error}", f"The base, or what lies beside the {dialect.title} LoRA, is of another model."
        ) from None


def _translated(dialect: Dialect, lora: DialectLora, said: Facts, key_map: KeyMap) -> Translation:
    if said.heads is None and said.naming.needs_heads:
        raise MatchError(
            f"LoRA {lora.name!r}: {dialect.title} orders the rows of q and k by heads, and nothing says how many",
            "Put the model's config.json, with num_attention_heads, beside the base.",
        )
    known = {name: module for modules in key_map.modules.values() for name, module in modules.items()}
    heads = said.heads or Heads(1, 1)
    renamed = {module.name: module for module in said.naming.modules(known, heads)}
    if not renamed:  # the base has this library's own names, or none that it knows
        return Translation(lora.tensors, said.config)
    modules: dict[str, LoraModule] = {}
    for module in lora.tensors.modules.values():
        name = module.name.removeprefix("model.")
        template = numbered(name.split("."))
        if template in dialect.fused:
            parts = list(_parts(replace(module, name=name), said, heads))
            if dialect.fused[template] and said.trained == PARTS:
                renamed |= {band.name: band for band in _bands(name, parts, renamed, heads)}
                parts = [replace(part, name=f"{name}.{i}") for i, part in enumerate(parts)]
        else:
            parts = [_ordered(replace(module, name=name), dialect, said.naming, heads)]
        modules |= {part.name: part for part in parts}
    return Translation(replace(lora.tensors, modules=modules), said.config, tuple(renamed.values()))


def _ordered(module: LoraModule, dialect: Dialect, naming: Naming, heads: Heads) -> LoraModule:
    """Put the rows of a module's tensors into transformers' order, and exchange factors that are the other's."""
    slots = dict(module.slots)
    for slot in slots.keys() & REORDERED:
        rows = slots[slot].shape[0] if slots[slot].shape else 0
        if order := naming.order(module.name, rows, heads):
            slots[slot] = reordered(slots[slot], order)
    if module.name in dialect.turned and slots.keys() == {"up", "down"}:
        slots = {"up": slots["down"], "down": turned(slots["up"])}
    return replace(module, slots=slots)


def _parts(module: LoraModule, said: Facts, heads: Heads) -> Iterator[LoraModule]:
    """Cut the factors of a fused module into those of q, k and v; tensors are counted with the first."""
    if module.slots.keys() != {"up", "down"} or not said.trained:
        raise ValueError(
            f"{visible(module.name)} has {', '.join(sorted(module.slots))}, not the factors of q, k and v"
        )
    up, down = module.slots["up"], module.slots["down"]
    counts = [heads.queries if part == "q" else heads.groups for part in said.trained]
    size, rest = divmod(up.shape[0] if len(up.shape) == len(down.shape) == 2 else 0, sum(counts))
    if rest or not size or down.shape[0] != said.config.rank * len(counts):
        raise ValueError(
            f"{visible(module.name)} has factors {up.shape} and {down.shape}: not those of {', '.join(said.trained)} "
            f"of rank {said.config.rank}, with {heads.queries} heads in {heads.groups} groups"
        )
    stem, row = module.name.rpartition(".")[0], 0
    for number, (part, count) in enumerate(zip(said.trained, counts, strict=True)):
        rank = said.config.rank
        slots = {
            "down": _rows(down, number * rank, (number + 1) * rank),
            "up": _rows(up, row, row + count * size),
        }
        row += count * size
        yield LoraModule(f"{stem}.{part}", slots, frozenset(slots) if number else frozenset())


def _bands(name: str, parts: list[LoraModule], known: Mapping[str, Module], heads: Heads) -> Iterator[Module]:
    """Yield what litgpt once added each part to when it trained q, k and v: so many rows of the matrix, in turn.

    The matrix had q, k and v by groups of heads, and what was added to it had all of q before k before v
    (Lightning-AI/litgpt, issue 891): trained so, it must be baked so.
    """
    whole = [known[part.name] for part in parts if part.name in known]
    views = [module.views["weight"] for module in whole]
    if len(views) < len(PARTS):
        return
    groups = [view.rows // heads.groups for view in views]
    matrix = join(
        [
            view.take([range(group * size, (group + 1) * size)])
            for group in range(heads.groups)
            for view, size in zip(views, groups, strict=True)
        ]
    )
    row = 0
    for number, view in enumerate(views):
        if matrix is not None:
            band = matrix.take([range(row, row + view.rows)])
            yield Module(whole[0].component, f"{name}.{number}", {"weight": band})
        row += view.rows


def _rows(stored: Stored, start: int, stop: int) -> Stored:
    """Describe some rows of a tensor as one of their own; raise ValueError where its rows do not lie apart."""
    info = stored.tensor
    if info is None:
        raise ValueError(f"{visible(stored.name)} is stored as {stored.title}: its rows cannot be taken apart")
    width = info.nbytes // info.shape[0]
    key, shape = f"{info.key}[{start}:{stop}]", (stop - start, *info.shape[1:])
    return plain(
        replace(info, key=key, shape=shape, start=info.start + start * width, stop=info.start + stop * width)
    )


# -- bases -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Transcript:
    """Hold a checkpoint under transformers' names; `orders` gives the order of rows for tensors that need one."""

    checkpoint: Checkpoint
    orders: Mapping[str, tuple[range, ...]] = field(default_factory=dict)


def transcribe(base: Checkpoint) -> Transcript:
    """Give the tensors of a language model in GGUF transformers' names and order; other checkpoints stay as they are.

    Raise FileError for a model whose conversion did more than that, or of which nothing is known.
    """
    model = model_of(base.facts)
    (header, *others) = base.parts[0].files
    if others or header.path.suffix.lower() != ".gguf" or model in MODELS:
        return Transcript(base)
    naming = LLAMA_CPP.models.get(str(model))
    if naming is None:
        raise FileError(
            f"{base.path}: a GGUF file of a model called {model or 'nothing'!r}: its conversion is not known",
            f"Known are {', '.join(LLAMA_CPP.models)}, and image and video models. Use the SafeTensors release.",
        )
    if (sort := base.facts.get("general.type", "model")) != "model":
        raise FileError(f"{base.path}: a GGUF file that says it is of the type {sort!r:.50}, no model")
    heads = heads_of(config_of(base.facts))
    if heads is None and naming.needs_heads:
        raise FileError(
            f"{base.path}: the GGUF file does not say how many heads the model has, one number for all layers"
        )
    strange, tensors, orders = [], dict[str, TensorInfo](), dict[str, tuple[range, ...]]()
    for info in header.tensors.values():
        module, _, parameter = info.key.rpartition(".")
        theirs = naming.theirs(module) if info.shape else None
        if theirs is None and info.key not in naming.left_out:
            strange.append(info.key)
        elif theirs is not None:
            try:
                order = naming.order(module, info.shape[0], heads or Heads(1, 1))
            except ValueError as error:
                raise FileError(f"{base.path}: {info.key}: {error}") from None
            key = f"{theirs}.{parameter}"
            tensors[key] = replace(info, key=key, name=key)
            if order:
                orders[key] = order
    if strange:
        raise FileError(
            f"{base.path}: {len(strange)} tensors that a plain {model} model has not: {some(strange)}",
            "Use the SafeTensors release.",
        )
    facts = {**base.facts, LEFT_OUT: [key for key in header.tensors if key in naming.left_out]}
    part = replace(base.parts[0], files=(replace(header, tensors=tensors, facts=facts),))
    return Transcript(replace(base, parts=(part,), tensors=tensors), orders)


def left_out_of(base: Checkpoint) -> tuple[str, ...]:
    """List what a language model in GGUF holds that its checkpoint has no place for."""
    return tuple(str(key) for key in cast(Iterable[object], base.facts.get(LEFT_OUT, ())))


def config_of(facts: Mapping[str, object]) -> dict[str, object]:
    """Say in config.json's words what a GGUF file says of a language model."""
    model = model_of(facts)
    heads = facts.get(f"{model}.attention.head_count")
    groups = facts.get(f"{model}.attention.head_count_kv", heads)
    said = {"model_type": model, "num_attention_heads": heads, "num_key_value_heads": groups}
    return {**said, "architectures": [f"{model}ForCausalLM"]} if model in LLAMA_CPP.models else {}
