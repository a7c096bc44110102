"""Put what `inspect` finds into lines for a person to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from lorabake.documents.inspect import FoundAlpha, FoundComponent, FoundKind, InspectDocument
from lorabake.visible import counted, size_of


def fact_lines(found: InspectDocument) -> Iterator[str]:
    """Yield facts about a file as lines; a fact that does not apply has none."""
    yield from _lines({name: fact for name, fact in _facts(found).items() if fact not in (None, (), "")}, "")


def _facts(found: InspectDocument) -> dict[str, object]:
    """Name the facts in people's words, and put them into words where they are records."""
    is_lora = found.what == "lora"
    ranks = {str(part.rank): part.count for part in found.ranks}
    scales = {"not a number" if part.scale is None else f"{part.scale:g}": part.count for part in found.scales}
    is_told_beside = found.names_of is not None and not found.adapter_config and not found.scales
    by_name = " (by names alone)" if found.family_by == "names" else ""
    family = f"{found.family_title}{by_name}" if found.family_title else "not recognised" if is_lora else None
    outside = found.outside_any_component
    return {
        "path": found.path,
        "what": found.what.replace("_", " "),
        "bytes": f"{found.bytes:,} ({size_of(found.bytes)})",
        "files": found.files,
        "tensors": found.tensors,
        "data SHA-256": found.data_sha256,
        "dtypes": {part.dtype: part.count for part in found.dtypes},
        "damaged": _messages(problem.message for problem in found.problems if problem.problem == "empty_tensors"),
        "cannot be baked": _messages(
            problem.message for problem in found.problems if problem.problem != "empty_tensors"
        ),
        "family": family,
        "modules": found.modules,
        "kinds": _kinds(found.kinds) if is_lora else None,
        "ranks": ranks if is_lora else None,
        "alphas": _alphas(found.alphas, is_told_beside=is_told_beside) if is_lora else None,
        "scales": scales if is_lora and not is_told_beside else None,
        "components": _components(found.components, is_lora=is_lora) if is_lora or found.components else None,
        "adapter_config": found.adapter_config,
        "lora_adapter_metadata": found.lora_adapter_metadata,
        "names of": found.names_of,
        "seen by": found.seen_by,
        "learned embeddings": ", ".join(found.learned_embeddings),
        "of no known form": ", ".join(found.of_no_known_form),
        "packed weights": {part.format: part.count for part in found.packed_weights} or None,
        "outside any component": f"{outside} tensors" if outside else None,
        "markers": ", ".join(found.markers),
        "baked by lorabake": found.baked_by_lorabake,
        "computed on": found.computed_on,
        "recipe": found.recipe,
        "inputs": found.inputs,
        "an adapter beside the weights": None if is_lora else _kinds(found.kinds) or None,
        "trigger words": ", ".join(
            part.words if part.count is None else f"{part.words} ×{part.count}" for part in found.trigger_words
        ),
        "training": found.training,
        "metadata": found.metadata,
    }


def _messages(messages: Iterable[str]) -> str:
    """Join reasons, perhaps with advice, into one line."""
    return "; ".join(line for message in messages for line in message.splitlines())


def _kinds(kinds: Iterable[FoundKind]) -> dict[str, int]:
    return {_kind(part): part.count for part in kinds}


def _kind(part: FoundKind) -> str:
    title = part.kind or f"incomplete or unknown set ({', '.join(part.slots)})"
    return f"{title} (tensors)" if part.unit == "tensors" else title


def _alphas(alphas: Iterable[FoundAlpha], *, is_told_beside: bool) -> object:
    """Count alphas; one that a configuration says of all modules stands alone."""
    words = {_alpha(alpha): alpha.count for alpha in alphas}
    if not words:
        return "said by the files beside it" if is_told_beside else "none"
    return next(iter(words)) if len(words) == 1 and not any(alpha.source == "tensor" for alpha in alphas) else words


def _alpha(alpha: FoundAlpha) -> str:
    value = alpha.note or f"{alpha.alpha:g}"
    return value if alpha.source in ("tensor", "header") else f"{value} ({alpha.source})"


def _components(components: Iterable[FoundComponent], *, is_lora: bool) -> dict[str, object]:
    if is_lora:
        return {"/".join(part.names) or "not said": part.modules for part in components}
    return {
        "/".join(part.names): f"{part.layout} layout, {part.tensors} tensors"
        + (f", prefix {part.prefix}" if part.prefix else "")
        for part in components
    }


def _lines(facts: Mapping[str, object], indent: str) -> Iterator[str]:
    width = max((len(str(name)) for name in facts), default=0)
    for name, value in facts.items():
        label = f"{indent}{name:<{width}}"
        if isinstance(value, dict) and value and all(isinstance(entry, int) for entry in value.values()):
            yield f"{label}  {counted(value)}"
        elif value == {}:
            yield f"{label}  none"
        elif isinstance(value, dict):
            yield f"{indent}{name}"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
            yield f"{indent}{name}"
            for entry in value:
                said = {key: part for key, part in entry.items() if part not in (None, [], {})}
                yield f"{indent}  {json.dumps(said, ensure_ascii=False)}"
        elif value is None:
            continue
        elif isinstance(value, list):
            yield f"{label}  {', '.join(map(str, value))}"
        else:
            yield f"{label}  {value}"
