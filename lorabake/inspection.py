"""What is this file? Family, layout, kinds, ranks, alphas, components and training facts of any input.

Headers only, but for the alphas, which are single numbers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from lorabake.adapters import dora, kinds_of, peft_fields, shared, suffixes
from lorabake.architectures import architectures
from lorabake.architectures.generic import GENERIC
from lorabake.keymap.embeddings import read_vectors
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.spelling import LoraTensors, components_named, sort_tensors
from lorabake.keymap.table import KeyMap
from lorabake.provenance import DEVICE
from lorabake.resolve import family_of, identify
from lorabake.tensors.checkpoint import Checkpoint, open_lora
from lorabake.tensors.dtypes import DTYPES, decode_scalar
from lorabake.tensors.emptiness import WEIGHT, hollow_words
from lorabake.tensors.formats import find_packing
from lorabake.tensors.safetensors import TensorInfo
from lorabake.translation import dialect_of, transcribe

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
    checkpoint, config = open_lora(path)
    tensors = sort_tensors(checkpoint.tensors.values(), suffixes(), shared())
    is_lora = bool(config or tensors.unsupported or _embeddings(checkpoint, tensors)) or any(
        m.slots.keys() & {"down", "lora_a"} for m in tensors.modules.values()
    )
    if is_lora and any(not DTYPES[info.dtype].floating for info in checkpoint.tensors.values()):
        is_lora = not find_packing(checkpoint).codes  # SVDQuant has factors beside its codes
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
    if is_lora:
        where = f"{path}: adapter_config.json"
        facts |= _describe_lora(
            checkpoint, tensors, PeftConfig.read(config, where, peft_fields()) if config else None
        )
    else:
        facts |= _describe_checkpoint(checkpoint)
    metadata = checkpoint.metadata
    facts |= {"trigger words": words} if (words := _trigger_words(metadata)) else {}
    known = {name: metadata[name] for name in FACTS if metadata.get(name, "None") != "None"}
    if known:
        facts["training" if is_lora else "metadata"] = known
    return facts


def _describe_lora(checkpoint: Checkpoint, tensors: LoraTensors, config: PeftConfig | None) -> dict[str, object]:
    kinds: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    alphas: Counter[str] = Counter()
    components: Counter[str] = Counter()
    family = family_of(tensors)
    own = family[0].components if family else ()
    dialect = dialect_of(checkpoint)
    tables = own or [part for each in architectures() if each is not GENERIC for part in each.components]
    for module in tensors.modules.values():
        for kind in kinds_of(frozenset(module.slots)):
            title = "DoRA" if dora.is_in(module.slots) else kind.title
            kinds["LoRA with a Tucker core" if "mid" in module.slots else title] += 1
        if dialect and module.shapes.get("up"):  # the other factor may hold those of several modules, or be turned
            ranks[module.slots["up"].shape[-1]] += 1
        elif "down" in module.slots and module.slots["down"].shape:
            ranks[module.slots["down"].shape[0]] += 1
        if "lora_a" in module.slots and module.slots["lora_a"].shape:
            ranks[module.slots["lora_a"].shape[-1]] += 1
        if "alpha" in module.slots:
            alphas[_alpha(module.slots["alpha"])] += 1
        named = components_named(module.name, tables) or components_named(module.name, GENERIC.components)
        components["/".join(sorted(named)) or "not said"] += 1
    for name, infos in tensors.unsupported.items():
        kinds[f"{name} (tensors)"] += len(infos)
    described: dict[str, object] = {
        "family": family[0].title if family else "not recognised",
        "modules": len(tensors.modules),
        "kinds": dict(kinds),
        "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
        "alphas": dict(sorted(alphas.items())) or "none: scale 1",
        "components": dict(components),
    }
    if config:
        described["adapter_config"] = {"r": config.rank, "lora_alpha": config.alpha, "rslora": config.rslora}
        described["alphas"] = f"{config.alpha:g} (adapter_config)" if not alphas else described["alphas"]
    if dialect:
        described["names of"] = dialect.title
        alpha = checkpoint.facts.get("adapter.lora.alpha", "said by the files beside it")
        described["alphas"] = f"{config.alpha:g} (adapter_config)" if config else str(alpha)
    if family:
        described["seen by"] = family[1]
    learned = _embeddings(checkpoint, tensors)
    if learned:
        described["learned embeddings"] = sorted({*learned.values()})
    strange = [info.key for info in tensors.unknown if info.key not in learned]
    if strange:
        described["of no known form"] = strange[:5]
    return described


def _embeddings(checkpoint: Checkpoint, tensors: LoraTensors) -> dict[str, str]:
    """Map the keys of learned embeddings to their tokens."""
    found = ((info.key, read_vectors(info, checkpoint.metadata)) for info in tensors.unknown)
    return {key: vectors.token for key, vectors in found if vectors is not None}


def _describe_checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    checkpoint = transcribe(checkpoint)
    packing = find_packing(checkpoint)
    tensors = packing.logical(checkpoint.tensors)
    key_map = KeyMap.expand(identify(tensors), tensors)
    described: dict[str, object] = {
        "family": key_map.architecture.title,
        "components": {
            name: f"{layout.name} layout, {sum(owner == name for owner in key_map.owner.values())} tensors"
            + (f", prefix {prefix}" if prefix else "")
            for name, (layout, prefix) in key_map.placed.items()
        },
    }
    if ways := Counter(packing.titles):
        described["packed weights"] = dict(ways.most_common())
    outside = len(tensors) - len(key_map.owner)
    if outside:
        described["outside any component"] = f"{outside} tensors"
    markers = [name for name in MARKERS if name in checkpoint.tensors]
    if markers:
        described["markers"] = markers
    baked = checkpoint.metadata.get("lorabake.recipe")
    if baked:
        described["baked by lorabake"] = checkpoint.metadata.get("lorabake.version", "")
        if DEVICE in checkpoint.metadata:
            described["computed on"] = checkpoint.metadata[DEVICE]
        described["recipe"] = _parsed(baked)
        described["inputs"] = _parsed(checkpoint.metadata.get("lorabake.inputs", "null"))
    return described


def _alpha(info: TensorInfo) -> str:
    with open(info.file, "rb") as stream:
        stream.seek(info.start)
        try:
            return f"{decode_scalar(info.dtype, stream.read(info.nbytes)):g}"
        except ValueError:
            return f"{info.dtype} {list(info.shape)}, which is no number"


def _trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """List the trigger phrase, and the tags that the trainer met most often."""
    words = [metadata["modelspec.trigger_phrase"]] if metadata.get("modelspec.trigger_phrase") else []
    counts: Counter[str] = Counter()
    frequency = _parsed(metadata.get("ss_tag_frequency", "null"))
    for folder in frequency.values() if isinstance(frequency, dict) else ():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] += count
    return words + [f"{tag} ×{count}" for tag, count in counts.most_common(10)]


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
