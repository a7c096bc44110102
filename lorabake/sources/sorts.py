"""Is this input what its place asks for? Refuse a LoRA as a base, a checkpoint as a LoRA, and the like.

The messages say what a file is, and where it belongs. `tensors.sorts` has the sorts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice

from lorabake.adapters import adapter_slots, are_stored, shared, suffixes
from lorabake.architectures import architectures
from lorabake.components.vae import VAE as VAE_TABLE
from lorabake.errors import FileError, LorabakeError
from lorabake.keymap.embeddings import read_vectors
from lorabake.keymap.slots import LoraTensors, sort_tensors
from lorabake.keymap.table import Architecture, find
from lorabake.recipe import Recipe
from lorabake.settings import filled
from lorabake.sources.family import GENERIC, identify
from lorabake.sources.loras import LoraSource
from lorabake.storage.recognition import way_of
from lorabake.tensors.checkpoint import Checkpoint, open_checkpoint
from lorabake.tensors.folders import one_of
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.reader import is_there
from lorabake.tensors.sorts import CHECKPOINT, EMPTY, LORA, VAE, Sort, sort_of

SAMPLE = 200
"""How many tensors of a file tell a LoRA from a checkpoint."""


@dataclass(frozen=True, slots=True)
class Share:
    """Count the tensors and modules of a file that only LoRAs have, and those that checkpoints have, too."""

    of_lora: int
    of_checkpoint: int

    @property
    def is_lora(self) -> bool:
        """Tell whether a file is a LoRA; one that is not merged yet has both, and more of the checkpoint's."""
        return self.of_lora >= max(self.of_checkpoint, 1)


def share_of(tensors: LoraTensors, metadata: Mapping[str, str]) -> Share:
    """Count what a file has of a LoRA, and what of a checkpoint."""
    learned = sum(read_vectors(info, metadata) is not None for info in tensors.unknown)
    adapters = sum(bool(module.slots.keys() & adapter_slots()) for module in tensors.modules.values())
    stored = sum(are_stored(frozenset(module.slots)) for module in tensors.modules.values())
    return Share(
        of_lora=adapters + sum(map(len, tensors.unsupported.values())) + learned,
        of_checkpoint=stored + len(tensors.unknown) - learned,
    )


def check_level(checkpoint: Checkpoint) -> None:
    """Raise FileError for a folder of models, which may look like a model whose parts are in sub-folders."""
    folders = [part.folder for part in checkpoint.parts if part.folder]
    if not folders or is_there(checkpoint.path / "model_index.json") or not _components().isdisjoint(folders):
        return
    advice = one_of([checkpoint.path / folder for folder in folders])
    raise FileError(f"{checkpoint.path}: is a folder of models or LoRAs, not one of them", advice)


def named_sort(tensors: Mapping[str, TensorInfo], share: Share) -> Sort:
    """Return the sort of a file with these tensors; what has nothing but a LoRA's is one, whatever it resembles."""
    if share.of_lora and not share.of_checkpoint:
        return LORA
    return sort_of(tensors) or (LORA if share.is_lora else CHECKPOINT)


def check_base(recipe: Recipe, base: Checkpoint, architecture: Architecture) -> None:
    """Raise FileError for a base that no LoRA can be baked into; one of a known family is none of these."""
    if architecture.name != GENERIC or not (recipe.loras or recipe.vae):
        return
    sort = _sort_of(base)
    if sort.is_no_base:
        advice = (sort is LORA and _exchanged(recipe, base)) or sort.advice
        raise FileError(f"{base.path}: is {sort.title}, and the base must be a checkpoint", advice)


def _exchanged(recipe: Recipe, base: Checkpoint) -> str:
    """Return the advice for a recipe with a LoRA as the base and the checkpoint among the LoRAs; "" for any other."""
    for entry in recipe.loras:
        with suppress(LorabakeError):  # what is wrong with it is another message, once the base is one
            lora = open_checkpoint(recipe.locate(entry))
            if _sort_of(lora) is CHECKPOINT:
                return filled(
                    f"{lora.path}, given as a LoRA{{AS_LORA}}, is a checkpoint. Exchange the two: "
                    f"{lora.path.name} is the base{{AS_BASE}}, and {base.path.name} a LoRA."
                )
    return ""


def check_vae(vae: Checkpoint) -> None:
    """Raise FileError for what is no VAE that can take the place of another one."""
    if find(VAE_TABLE, vae.tensors) is not None:
        return
    sort = _sort_of(vae)
    if sort is VAE:
        raise FileError(f"{vae.path}: is a VAE of another family: it has no encoder.down… tensors")
    advice = "Give under vae a file that holds a VAE. A LoRA belongs under loras." if sort is LORA else sort.advice
    raise FileError(f"{vae.path}: is {sort.title}, not a VAE: it has no encoder.down… tensors", advice)


def other_than_lora(lora: LoraSource, ignored: Collection[str]) -> tuple[str, str] | None:
    """Say what a file is that was given as a LoRA, and what to do with it; None if it can be one.

    `ignored` are the keys that the recipe ignores. A configuration of an adapter beside a file says that it is one.
    """
    share = share_of(lora.tensors, lora.checkpoint.metadata)
    if lora.config or lora.component_configs:
        return None
    tensors = {key: info for key, info in lora.checkpoint.tensors.items() if key not in ignored}
    sort = named_sort(tensors, share)
    if sort not in (LORA, CHECKPOINT, EMPTY):
        return f"is {sort.title}, not a LoRA", sort.advice
    if share.of_lora or sort is not CHECKPOINT:
        return None
    family, way = identify(tensors), way_of(tensors)
    if family.name == GENERIC and way is None:
        return None
    what = f"weights stored as {way}" if family.name == GENERIC else family.title
    return f"is {CHECKPOINT.title} ({what}), not a LoRA", CHECKPOINT.advice


def _sort_of(checkpoint: Checkpoint) -> Sort:
    """Return the sort of a file; the first tensors tell a LoRA from a checkpoint."""
    first = sort_tensors(islice(checkpoint.tensors.values(), SAMPLE), suffixes(), shared())
    return named_sort(checkpoint.tensors, share_of(first, checkpoint.metadata))


@cache
def _components() -> frozenset[str]:
    """Collect what families call the folders of their parts."""
    return frozenset(component.name for family in architectures() for component in family.components)
