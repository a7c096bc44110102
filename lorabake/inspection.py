"""What is this file? Family, layout, kinds, ranks, alphas, components and training facts of any input.

Headers only, but for the alphas, which are single numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lorabake.adapters import adapter_slots, dora, kinds_of, peft_fields, shared, suffixes
from lorabake.adapters.experts import EXPERTS
from lorabake.adapters.kind import Kind
from lorabake.architectures import architectures
from lorabake.architectures.generic import GENERIC
from lorabake.arguments import AnyPath, path_of, well_called
from lorabake.codecs.codec import Stored
from lorabake.documents import document
from lorabake.documents.inspect import (
    DtypeCount,
    FoundAlpha,
    FoundComponent,
    FoundKind,
    FoundScale,
    InspectDocument,
    Problem,
    StoredFormat,
    TriggerWords,
)
from lorabake.documents.records import RankCount
from lorabake.errors import FileError
from lorabake.keymap.adapter_config import from_metadata, read_config
from lorabake.keymap.embeddings import read_vectors
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.peft import SCALED, PeftConfig
from lorabake.keymap.slots import REASONS, LoraModule, sort_tensors
from lorabake.keymap.spelling import Prefixes
from lorabake.paths import check_there
from lorabake.planning.provenance import DEVICE, said_sha256
from lorabake.recipe import Lora
from lorabake.remote import Wanted, address_of
from lorabake.sources.family import VAE_ONLY, identify
from lorabake.sources.loras import LoraSource
from lorabake.sources.recognition import TEXT, TEXT_ENCODER, recognise
from lorabake.sources.sorts import check_level, named_sort, share_of
from lorabake.sources.translation import dialect_of, transcribe
from lorabake.storage.fields import INPUTS, RECIPE
from lorabake.storage.recognition import find_packing
from lorabake.storage.statements import read_beside
from lorabake.tensors.checkpoint import Checkpoint, open_lora
from lorabake.tensors.emptiness import WEIGHT, hollow_words
from lorabake.tensors.small import json_or_text
from lorabake.tensors.sorts import LORA
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


AlphaSource = Literal["tensor", "adapter_config", "lora_adapter_metadata", "header"]


@dataclass(frozen=True, slots=True)
class Alpha:
    """Hold an alpha and what says it; a `note` says what it is where it is no number."""

    value: float | None
    source: AlphaSource
    note: str = ""


@well_called('inspect("style.safetensors")')
def inspect(path: AnyPath) -> dict[str, object]:
    """Describe a checkpoint or LoRA, as `lorabake schema inspect` says.

    Raise FileError if the file is neither or is damaged.

    Examples:
        >>> facts = lorabake.inspect("lora.safetensors")
        >>> facts["what"], facts["tensors"]
        ('lora', 12)
    """
    return document("inspect", record_of(located(path)))


def located(path: AnyPath) -> Path:
    """Return a path; for the address of a file that was fetched, where it lies on this machine."""
    address = address_of(path) if isinstance(path, str) else None
    if address is None or address.needs_digest:
        return path_of(path, "the path to inspect")
    return address.cached(Wanted())


def record_of(path: Path) -> InspectDocument:
    """Describe a checkpoint or LoRA; raise FileError if the file is neither or is damaged."""
    check_there(path)
    checkpoint, config = open_lora(path)
    check_level(checkpoint)
    tensors = sort_tensors(checkpoint.tensors.values(), suffixes(), shared())
    lora = LoraSource(Lora.model_construct(path=str(path)), checkpoint, tensors, None, {})
    adapters = [module for module in tensors.modules.values() if module.slots.keys() & adapter_slots()]
    share = share_of(tensors, checkpoint.metadata)
    sort = named_sort(checkpoint.tensors, share) if config is None else LORA
    is_lora = sort is LORA
    hollow = hollow_words(checkpoint.tensors, "" if is_lora else WEIGHT)
    metadata = checkpoint.metadata
    known = {name: metadata[name] for name in FACTS if metadata.get(name, "None") != "None"} or None
    files = sum(len(part.files) for part in checkpoint.parts)
    record = InspectDocument(
        path=str(path),
        what=sort.name,
        bytes=checkpoint.size,
        files=files,
        tensors=len(checkpoint.tensors),
        dtypes=tuple(
            DtypeCount(dtype, count)
            for dtype, count in Counter(info.dtype for info in checkpoint.tensors.values()).most_common()
        ),
        problems=(Problem("empty_tensors", hollow),) if hollow else (),
        data_sha256=said_sha256(metadata) if files == 1 else None,
        trigger_words=tuple(_trigger_words(metadata)),
        training=known if is_lora else None,
        metadata=None if is_lora else known,
    )
    if is_lora:
        return _with_lora(record, lora, config)
    if sort.is_no_base:
        return replace(record, problems=(*record.problems, Problem("no_lora", sort.advice)))
    kinds = tuple(_count_kinds(lora, adapters)) if share.of_lora else ()
    del lora, tensors, adapters  # a third of the memory
    return _with_checkpoint(replace(record, kinds=kinds), checkpoint)


def _with_lora(record: InspectDocument, lora: LoraSource, said: Mapping[str, object] | None) -> InspectDocument:
    """Add what a bake would know of a LoRA; `said` is its adapter_config.json."""
    problems = [*record.problems]
    try:
        where, types = str(lora.checkpoint.path), peft_fields()
        config = None if said is None else read_config(said, f"{where}: adapter_config.json", types)
        lora = replace(lora, config=config, component_configs=from_metadata(lora.checkpoint.metadata, where, types))
    except FileError as error:
        problems.append(Problem("configuration", str(error)))
    tensors, evidence, dialect = lora.tensors, recognise(lora.tensors), dialect_of(lora.checkpoint)
    ranks: Counter[int] = Counter()
    alphas: Counter[Alpha] = Counter()
    scales: Counter[float | None] = Counter()
    components: Counter[tuple[str, ...]] = Counter()
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
        components[tuple(sorted(named))] += 1
    for name in tensors.unsupported:
        problems.append(Problem("kind", REASONS.get(name, f"{name} is not supported by this version")))
    learned = _embeddings(lora)
    strange = [info.key for info in tensors.unknown if info.key not in learned]
    title = evidence.title
    is_text = all("/".join(names).startswith(TEXT[0]) for names in components)
    if title and evidence.is_text and "encoder" not in title and is_text:
        title = TEXT_ENCODER.format(title)
    if dialect and lora.config is None:
        stated = _number(lora.checkpoint.facts.get("adapter.lora.alpha"))
        alphas = Counter() if stated is None else Counter({Alpha(stated, "header"): len(tensors.modules)})
        scales.clear()
    return replace(
        record,
        problems=tuple(problems),
        family_title=title,
        families=tuple(family.name for family in evidence.families),
        family_by=None if not title else "structure" if evidence.whole or evidence.is_text else "names",
        modules=len(tensors.modules),
        kinds=tuple(_count_kinds(lora, tensors.modules.values())),
        ranks=tuple(RankCount(rank, count) for rank, count in sorted(ranks.items())),
        alphas=tuple(
            FoundAlpha(alpha.value, alpha.source, count, alpha.note or None)
            for alpha, count in sorted(alphas.items(), key=lambda item: (str(item[0].value), item[0].source))
        ),
        scales=tuple(
            FoundScale(scale, count) for scale, count in sorted(scales.items(), key=lambda item: str(item[0]))
        ),
        components=tuple(FoundComponent(names, None, None, None, count) for names, count in components.items()),
        adapter_config=_settings(lora.config) if lora.config else None,
        lora_adapter_metadata={name: _settings(config) for name, config in lora.component_configs.items()} or None,
        names_of=dialect.title if dialect else None,
        seen_by=evidence.seen_by(tensors.modules),
        learned_embeddings=tuple(sorted({*learned.values()})),
        of_no_known_form=tuple(strange[:5]),
    )


def _kinds(lora: LoraSource, module: LoraModule) -> tuple[Kind, ...]:
    """Choose the kinds of a module as a bake would; the base is not there to tell where its experts are."""
    slots = frozenset(module.slots)
    if EXPERTS.claims(slots) == slots and (_expert_stack(lora, module) or EXPERTS.is_told_by(module.shapes)):
        return (EXPERTS,)
    return kinds_of(slots)


def _expert_stack(lora: LoraSource, module: LoraModule) -> str | None:
    config, path = lora.config_of(module.name)
    return config.expert_stack(path) if config else None


def _count_kinds(lora: LoraSource, modules: Iterable[LoraModule]) -> Iterator[FoundKind]:
    """Count the modules of each kind, and the tensors of kinds that cannot be baked."""
    kinds: Counter[str] = Counter()
    incomplete: Counter[tuple[str, ...]] = Counter()
    for module in modules:
        chosen = _kinds(lora, module)
        for kind in chosen:
            title = "DoRA" if dora.is_in(module.slots) else kind.told_title(module.shapes)
            kinds["LoRA with a Tucker core" if "mid" in module.slots else title] += 1
        if not chosen and module.slots.keys() != {"alpha"}:
            incomplete[tuple(sorted(module.slots))] += 1
    for title, count in kinds.items():
        yield FoundKind(title, (), count, "modules")
    for slots, count in incomplete.items():
        yield FoundKind(None, slots, count, "modules")
    for title, infos in lora.tensors.unsupported.items():
        yield FoundKind(title, (), len(infos), "tensors")


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


def _scale(lora: LoraSource, module: LoraModule, kind: Kind) -> tuple[Alpha | None, float | None]:
    """Return a module's alpha, None where it has none, and its scale, None where the alpha is no number."""
    config, path = lora.config_of(module.name)
    if "alpha" in module.slots and kind.may_have_alpha:
        alpha = _alpha(module.slots["alpha"])
        return alpha, _told(kind, module, alpha)
    if config is None:
        return None, 1
    path = config.expert_stack(path) or config.trained(path)
    said = config.said_alpha_of(path)
    source: AlphaSource = "adapter_config" if lora.config else "lora_adapter_metadata"
    return None if said is None else Alpha(_short(said), source), _short(config.scale_of(path))


def _told(kind: Kind, module: LoraModule, alpha: Alpha) -> float | None:
    try:
        if alpha.value is not None and _has_shapes(kind, module) and kind.rank(module.shapes):
            return _short(kind.scale(alpha.value, module.shapes))
    except IndexError:  # as above
        pass
    return None


def _short(value: float) -> float:
    """Round to six digits, so that numbers which float16 wrote and which were divided are known again."""
    return float(f"{value:g}")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


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


def _with_checkpoint(record: InspectDocument, checkpoint: Checkpoint) -> InspectDocument:
    """Add what a bake would know of a base."""
    transcript = transcribe(checkpoint)
    checkpoint = transcript.checkpoint
    packing = find_packing(checkpoint, read_beside(checkpoint), transcript.orders)
    tensors = packing.logical(checkpoint.tensors)
    architecture = identify(tensors)
    if architecture is GENERIC and VAE_ONLY.fits(tensors):
        architecture = VAE_ONLY
    key_map = KeyMap.expand(architecture, tensors)
    owned = Counter(key_map.owner.values())
    metadata = checkpoint.metadata
    baked = metadata.get(RECIPE)
    return replace(
        record,
        family_title=key_map.architecture.title,
        families=(key_map.architecture.name,),
        family_by="structure",
        components=tuple(
            FoundComponent((name,), layout.name, prefix, owned[name], None)
            for name, (layout, prefix) in key_map.placed.items()
        ),
        packed_weights=tuple(StoredFormat(title, count) for title, count in Counter(packing.titles).most_common()),
        outside_any_component=len(tensors) - len(key_map.owner),
        markers=tuple(name for name in MARKERS if name in checkpoint.tensors),
        baked_by_lorabake=metadata.get("lorabake.version", "") if baked else None,
        computed_on=metadata.get(DEVICE) if baked else None,
        recipe=json_or_text(baked) if baked else None,
        inputs=json_or_text(metadata.get(INPUTS, "null")) if baked else None,
    )


def _alpha(info: Stored) -> Alpha:
    """Read an alpha; where it is no number, say what it is."""
    try:
        return Alpha(_short(read_scalar(info.first)), "tensor")
    except ValueError:
        return Alpha(None, "tensor", f"{info.dtype} {list(info.shape)}, which is no number")


def _trigger_words(metadata: Mapping[str, str]) -> Iterator[TriggerWords]:
    """Yield the trigger phrase, and the tags that the trainer met most often."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        yield TriggerWords(phrase, None)
    counts: Counter[str] = Counter()
    frequency = json_or_text(metadata.get("ss_tag_frequency", "null"))
    for folder in frequency.values() if isinstance(frequency, dict) else ():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] += count
    yield from (TriggerWords(tag, count) for tag, count in counts.most_common(10))
