"""What is this file? Family, layout, kinds, ranks, alphas, components and training facts of any input.

Headers only, but for the alphas, which are single numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lorabake.adapters import adapter_slots, are_stored, dora, kinds_of, peft_fields, shared, suffixes
from lorabake.adapters.experts import EXPERTS
from lorabake.adapters.kind import Kind
from lorabake.architectures import architectures
from lorabake.architectures.generic import GENERIC
from lorabake.codecs.codec import Stored
from lorabake.errors import FileError
from lorabake.keymap.adapter_config import from_metadata, read_config
from lorabake.keymap.embeddings import is_inversion, read_vectors
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.peft import SCALED, PeftConfig
from lorabake.keymap.slots import MARKERS as NO_LORAS
from lorabake.keymap.slots import REASONS, LoraModule, sort_tensors
from lorabake.keymap.spelling import Prefixes
from lorabake.paths import check_there
from lorabake.planning.provenance import DEVICE
from lorabake.recipe import Lora
from lorabake.sources.family import VAE_ONLY, identify
from lorabake.sources.loras import LoraSource
from lorabake.sources.recognition import TEXT, TEXT_ENCODER, recognise
from lorabake.sources.translation import dialect_of, transcribe
from lorabake.storage.recognition import find_packing
from lorabake.storage.statements import read_beside
from lorabake.tensors.checkpoint import Checkpoint, open_lora
from lorabake.tensors.emptiness import WEIGHT, hollow_words
from lorabake.tensors.small import json_or_text
from lorabake.tensors.values import read_scalar

FACTS = (
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
    "ss_num_train_images",
    "ss_num_epochs",
    "ss_steps",
    "ss_learning_rate",
    "ss_optimizer",
    "ss_resolution",
    "ss_clip_skip",
    "ss_training_comment",
    "modelspec.architecture",
    "modelspec.title",
    "modelspec.author",
    "modelspec.date",
    "modelspec.license",
    "modelspec.resolution",
    "modelspec.prediction_type",
    "software",
)
MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "scaled_fp8")


def inspect(path: Path) -> dict[str, object]:
    """Describe a checkpoint or LoRA; raise FileError if the file is neither or is damaged."""
    check_there(path)
    checkpoint, config = open_lora(path)
    tensors = sort_tensors(checkpoint.tensors.values(), suffixes(), shared())
    lora = LoraSource(Lora.model_construct(path=str(path)), checkpoint, tensors, None, {})
    learned = _embeddings(lora)
    adapters = [module for module in tensors.modules.values() if module.slots.keys() & adapter_slots()]
    inside = len(adapters) + sum(map(len, tensors.unsupported.values())) + len(learned)
    beside = sum(are_stored(frozenset(module.slots)) for module in tensors.modules.values())
    beside += len(tensors.unknown) - len(learned)
    is_lora = config is not None or inside >= max(beside, 1)
    facts: dict[str, object] = {
        "path": str(path),
        "what": "lora" if is_lora else "checkpoint",
        "bytes": checkpoint.size,
        "files": sum(len(part.files) for part in checkpoint.parts),
        "tensors": len(checkpoint.tensors),
        "dtypes": dict(Counter(info.dtype for info in checkpoint.tensors.values()).most_common()),
    }
    if hollow := hollow_words(checkpoint.tensors, "" if is_lora else WEIGHT):
        facts["damaged"] = hollow
    if no_lora := next((NO_LORAS[key] for key in NO_LORAS if key in checkpoint.tensors), None):
        facts |= {"what": "neither", "cannot_be_baked": no_lora}
    elif is_inversion(checkpoint.tensors.values()):
        facts |= {"what": "textual inversion"}
    elif is_lora:
        facts |= _describe_lora(lora, config)
    else:
        beside_weights = {"adapter_beside_the_weights": dict(_count_kinds(lora, adapters))} if inside else {}
        del lora, tensors, adapters, learned  # a third of the memory
        facts |= _describe_checkpoint(checkpoint) | beside_weights
    metadata = checkpoint.metadata
    facts |= {"trigger_words": words} if (words := _trigger_words(metadata)) else {}
    known = {name: metadata[name] for name in FACTS if metadata.get(name, "None") != "None"}
    if known:
        facts["training" if is_lora else "metadata"] = known
    return facts


def _describe_lora(lora: LoraSource, said: Mapping[str, object] | None) -> dict[str, object]:
    """Say what a bake would know of a LoRA; `said` is its adapter_config.json."""
    why_not: list[str] = []
    try:
        where, types = str(lora.checkpoint.path), peft_fields()
        config = None if said is None else read_config(said, f"{where}: adapter_config.json", types)
        lora = replace(lora, config=config, component_configs=from_metadata(lora.checkpoint.metadata, where, types))
    except FileError as error:
        why_not.append(str(error))
    tensors, evidence, dialect = lora.tensors, recognise(lora.tensors), dialect_of(lora.checkpoint)
    ranks: Counter[int] = Counter()
    alphas: Counter[str] = Counter()
    scales: Counter[str] = Counter()
    components: Counter[str] = Counter()
    own = [part for family in evidence.families for part in family.components]
    tables = Prefixes(
        own or [part for family in architectures() if family is not GENERIC for part in family.components]
    )
    generic = Prefixes(GENERIC.components)
    for module in tensors.modules.values():
        is_empty = any(info.shape == (0,) for info in module.slots.values())
        for kind in () if is_empty else _kinds(lora, module):
            if kind.has_told_scale:
                alpha, scale = _scale(lora, module, kind)
                alphas.update([alpha] if alpha else [])
                if kind.has_told_rank:
                    rank = _rank(lora, kind, module, by_up=dialect is not None)
                    ranks.update([] if rank is None else [rank])
                    scales.update([scale])
        named = tables.named(module.name) or generic.named(module.name)
        components["/".join(sorted(named)) or "not said"] += 1
    why_not += [REASONS.get(name, f"{name} is not supported by this version") for name in tensors.unsupported]
    learned = _embeddings(lora)
    strange = [info.key for info in tensors.unknown if info.key not in learned]
    by_name = "" if evidence.whole or evidence.is_text else " (by names alone)"
    title = evidence.title
    if title and evidence.is_text and "encoder" not in title and all(name.startswith(TEXT[0]) for name in components):
        title = TEXT_ENCODER.format(title)
    described: dict[str, object] = {
        "family": f"{title}{by_name}" if title else "not recognised",
        "modules": len(tensors.modules),
        "kinds": dict(_count_kinds(lora, tensors.modules.values())),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "alphas": _listed(alphas),
        "scales": dict(sorted(scales.items())),
        "components": dict(components),
        "adapter_config": _settings(lora.config) if lora.config else None,
        "lora_adapter_metadata": {name: _settings(config) for name, config in lora.component_configs.items()} or None,
        "names_of": dialect.title if dialect else None,
        "seen_by": evidence.seen_by(tensors.modules),
        "learned_embeddings": sorted({*learned.values()}) or None,
        "of_no_known_form": strange[:5] or None,
        "cannot_be_baked": "; ".join(why_not) or None,
    }
    if dialect and lora.config is None:
        described["alphas"] = str(lora.checkpoint.facts.get("adapter.lora.alpha", "said by the files beside it"))
        del described["scales"]
    return {name: fact for name, fact in described.items() if fact is not None}


def _kinds(lora: LoraSource, module: LoraModule) -> tuple[Kind, ...]:
    """Choose the kinds of a module as a bake would; the base is not there to tell where its experts are."""
    slots = frozenset(module.slots)
    if EXPERTS.claims(slots) == slots and (_expert_stack(lora, module) or EXPERTS.is_told_by(module.shapes)):
        return (EXPERTS,)
    return kinds_of(slots)


def _expert_stack(lora: LoraSource, module: LoraModule) -> str | None:
    config, path = lora.config_of(module.name)
    return config.expert_stack(path) if config else None


def _count_kinds(lora: LoraSource, modules: Iterable[LoraModule]) -> Counter[str]:
    """Count the modules of each kind, and the tensors of kinds that cannot be baked."""
    kinds: Counter[str] = Counter()
    for module in modules:
        chosen = _kinds(lora, module)
        for kind in chosen:
            title = "DoRA" if dora.is_in(module.slots) else kind.told_title(module.shapes)
            kinds["LoRA with a Tucker core" if "mid" in module.slots else title] += 1
        if not chosen and module.slots.keys() != {"alpha"}:
            kinds[f"incomplete or unknown set ({', '.join(sorted(module.slots))})"] += 1
    for name, infos in lora.tensors.unsupported.items():
        kinds[f"{name} (tensors)"] += len(infos)
    return kinds


def _rank(lora: LoraSource, kind: Kind, module: LoraModule, *, by_up: bool) -> int | None:
    """Return a module's rank, None where its tensors have no shape that says so.

    It is that of `up` where the other factor may hold those of several modules, or be turned. The experts of a stack
    cannot be counted here: their configuration says the rank.
    """
    shapes = module.shapes
    if by_up and shapes.get("up"):
        return shapes["up"][-1]
    config, _ = lora.config_of(module.name)
    if config and (stack := _expert_stack(lora, module)):
        return config.rank_of(stack)
    try:
        return kind.told_rank(shapes) if _has_shapes(kind, module) else None
    except IndexError:  # a tensor has fewer sides than its kind asks for, which plan and bake refuse
        return None


def _has_shapes(kind: Kind, module: LoraModule) -> bool:
    shapes = module.shapes
    return all(shapes[slot] for slot in kind.claims(frozenset(shapes)) - kind.numbers)


def _scale(lora: LoraSource, module: LoraModule, kind: Kind) -> tuple[str, str]:
    """Return a module's alpha, "" where it has none, and its scale, each with who says so where no tensor does."""
    config, path = lora.config_of(module.name)
    if "alpha" in module.slots and kind.may_have_alpha:
        alpha = _alpha(module.slots["alpha"])
        return f"{alpha:g}" if isinstance(alpha, float) else alpha, _told(kind, module, alpha)
    if config is None:
        return "", "1"
    source = "adapter_config" if lora.config else "lora_adapter_metadata"
    path = config.expert_stack(path) or config.trained(path)
    said = config.said_alpha_of(path)
    return "" if said is None else f"{said:g} ({source})", f"{config.scale_of(path):g}"


def _told(kind: Kind, module: LoraModule, alpha: float | str) -> str:
    try:
        if isinstance(alpha, float) and _has_shapes(kind, module) and kind.rank(module.shapes):
            return f"{kind.scale(alpha, module.shapes):g}"
    except IndexError:  # as above
        pass
    return "not a number"


def _listed(alphas: Counter[str]) -> object:
    """Write alphas with their counts; one that a configuration says of all modules stands alone."""
    one = next(iter(alphas), "none")
    return one if len(alphas) < 2 and one.endswith((")", "none")) else dict(sorted(alphas.items()))


def _settings(config: PeftConfig) -> dict[str, object]:
    """List what a configuration says of ranks and scales, in its own words."""
    if config.is_mlx:
        return {"scale": config.alpha, "fine_tune_type": "dora" if config.dora else "lora"}
    if config.kind not in SCALED:
        return {"peft_type": config.kind}
    kind = {} if config.kind == "LORA" else {"peft_type": config.kind}
    return {**kind, "r": config.rank, SCALED[config.kind]: config.alpha, "rslora": config.rslora}


def _embeddings(lora: LoraSource) -> dict[str, str]:
    """Map the keys of learned embeddings to their tokens."""
    learned = ((info.key, read_vectors(info, lora.checkpoint.metadata)) for info in lora.tensors.unknown)
    return {key: vectors.token for key, vectors in learned if vectors is not None}


def _describe_checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    transcript = transcribe(checkpoint)
    checkpoint = transcript.checkpoint
    packing = find_packing(checkpoint, read_beside(checkpoint), transcript.orders)
    tensors = packing.logical(checkpoint.tensors)
    architecture = identify(tensors)
    if architecture is GENERIC and VAE_ONLY.fits(tensors):
        architecture = VAE_ONLY
    key_map = KeyMap.expand(architecture, tensors)
    described: dict[str, object] = {
        "family": key_map.architecture.title,
        "components": {
            name: f"{layout.name} layout, {sum(owner == name for owner in key_map.owner.values())} tensors"
            + (f", prefix {prefix}" if prefix else "")
            for name, (layout, prefix) in key_map.placed.items()
        },
    }
    if ways := Counter(packing.titles):
        described["packed_weights"] = dict(ways.most_common())
    outside = len(tensors) - len(key_map.owner)
    if outside:
        described["outside_any_component"] = f"{outside} tensors"
    markers = [name for name in MARKERS if name in checkpoint.tensors]
    if markers:
        described["markers"] = markers
    baked = checkpoint.metadata.get("lorabake.recipe")
    if baked:
        described["baked_by_lorabake"] = checkpoint.metadata.get("lorabake.version", "")
        if DEVICE in checkpoint.metadata:
            described["computed_on"] = checkpoint.metadata[DEVICE]
        described["recipe"] = json_or_text(baked)
        described["inputs"] = json_or_text(checkpoint.metadata.get("lorabake.inputs", "null"))
    return described


def _alpha(info: Stored) -> float | str:
    """Read an alpha; where it is no number, return what it is."""
    try:
        return read_scalar(info.first)
    except ValueError:
        return f"{info.dtype} {list(info.shape)}, which is no number"


def _trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """List the trigger phrase, and the tags that the trainer met most often."""
    words = [metadata["modelspec.trigger_phrase"]] if metadata.get("modelspec.trigger_phrase") else []
    counts: Counter[str] = Counter()
    frequency = json_or_text(metadata.get("ss_tag_frequency", "null"))
    for folder in frequency.values() if isinstance(frequency, dict) else ():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] += count
    return words + [f"{tag} ×{count}" for tag, count in counts.most_common(10)]
