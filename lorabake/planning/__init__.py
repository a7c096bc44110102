"""Plan a bake: `Sources` in; a `Plan` out: every header, offset and step, before a byte is written.

Pure: no tensor is read. Everything after the plan only obeys it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lorabake.codecs.codec import Stored
from lorabake.errors import InternalError
from lorabake.matching import match
from lorabake.matching.ledger import Ledger
from lorabake.matching.names import BaseNames
from lorabake.matching.patches import Patch
from lorabake.paths import expanded
from lorabake.planning.checks import check_dtypes, check_form, check_is_no_input, check_patches, check_rows
from lorabake.planning.copies import Copy, Given, copies_of
from lorabake.planning.cost import peak_memory
from lorabake.planning.files import Draft, Embedding, OutputFile, configs_of, drafts_of, embeddings_of, indexes_of
from lorabake.planning.identity import Identity, doubts_of, identity_of
from lorabake.planning.layout import OutputLayout, copied_beside, layout_of
from lorabake.planning.links import with_twins
from lorabake.planning.metadata import described
from lorabake.planning.notes import notes_of
from lorabake.planning.steps import Step, Target, steps_of, touched_by
from lorabake.planning.storage import Storage, storage_of
from lorabake.planning.vae import replaced_by_vae
from lorabake.sources import Sources
from lorabake.tensors.once import once

CARDS = re.compile(r"readme(?:\.\w+)?|model[-_ ]?card(?:\.\w+)?", re.IGNORECASE)
"""Names of files in a model's folder that tell of the model: README.md, model_card.md."""


def is_card(path: Path) -> bool:
    """Tell whether a file of the base's folder, by its path there, tells of the base, which a bake is not."""
    return len(path.parts) == 1 and CARDS.fullmatch(path.name) is not None


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold all that a bake will do. `digests` maps each placeholder in the metadata to the file it stands for."""

    sources: Sources
    path: Path
    layout: OutputLayout
    files: tuple[OutputFile, ...]
    texts: Mapping[str, str]
    copies: tuple[Copy, ...]
    steps: tuple[Step, ...]
    ledgers: tuple[Ledger, ...]
    digests: Mapping[str, Path]
    notes: tuple[str, ...]
    identity: Identity
    embeddings: tuple[Embedding, ...] = ()
    given: tuple[Given, ...] = ()
    left_out: frozenset[str] = frozenset()
    """Files of the base's folder that say how weights are stored, which is true no more."""

    copied: Mapping[str, Path] = field(default_factory=dict)
    """Files of added parts that are copied as they are: path below the output -> where it lies."""

    def __repr__(self) -> str:
        from lorabake.planning.summary import line_of

        return f"<Plan {line_of(self)}>"

    def _repr_html_(self) -> str:
        from lorabake.planning.summary import card_of

        return card_of(self)

    @property
    def is_folder(self) -> bool:
        """Tell whether the output is a folder."""
        return self.layout.is_folder

    @property
    def variant(self) -> str | None:
        """Name the variant that the output's files have in their names, as the base's do."""
        return None if self.layout.is_converted else self.sources.recipe.base.variant

    @property
    def size(self) -> int:
        """Count the bytes of all files with weights."""
        return sum(file.size for file in self.files)

    @property
    def side_files(self) -> tuple[Path, ...]:
        """List the files beside the base's weights that the output has, too, as they are or rewritten."""
        base = self.sources.base
        files = base.side_files if base.is_folder and not self.layout.is_converted else ()
        return tuple(path for path in files if path.as_posix() not in self.left_out and not is_card(path))

    @property
    def patches(self) -> tuple[Patch, ...]:
        """List every patch of every step once."""
        return tuple({patch.number: patch for step in self.steps for patch in step.patches}.values())

    @property
    def baked_bytes(self) -> int:
        """Count the bytes that are computed."""
        return sum(target.nbytes for step in self.steps for target in step.targets)

    @property
    def copied_bytes(self) -> int:
        """Count the bytes that are copied as they are, but for those of links."""
        return sum(copy.stop - copy.start for copy in self.copies)

    def peak_memory(self, workers: int = 2) -> int:
        """Estimate the bytes of anonymous memory that a bake needs."""
        return peak_memory(self.steps, workers)

    def report(self) -> dict[str, object]:
        """Put the plan in figures, for machines, as `lorabake schema plan` describes them."""
        from lorabake.documents import fields_of
        from lorabake.planning.record import record_of

        return fields_of(record_of(self))


def plan(sources: Sources, output: str | Path | None = None) -> Plan:
    """Plan a bake of inputs that have been opened; no input is read any more.

    `output` overrides the recipe's path. Raise MatchError for a LoRA that does not fit whole, FileError for a VAE
    that does not, TargetError for an output that is an input or of the wrong form.
    """
    path = Path(expanded(str(output))) if output else sources.recipe.locate(sources.recipe.output.path)
    check_form(sources, path)
    check_is_no_input(sources, path)
    check_dtypes(sources)
    layout = layout_of(sources)
    patches, ledgers = _match(sources)
    embeddings = tuple(embeddings_of(sources, path, ledgers))
    return _planned(sources, path, layout, patches, ledgers, embeddings)


def in_base_layout(converted: Plan) -> Plan:
    """Plan the same values in the base's own layout, without what the converted output leaves out.

    Return a plan that is not converted as it is. No output is written by what this returns: its path is no output's.
    """
    if not converted.layout.is_converted:
        return converted
    recipe = converted.sources.recipe
    recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"layout": "keep"})})
    sources = replace(converted.sources, recipe=recipe)
    layout = layout_of(sources)
    ending = "" if layout.is_folder else ".safetensors"
    path = converted.path.with_name(f"{converted.path.stem}.in_base_layout{ending}")
    patches = tuple(sorted(converted.patches, key=lambda patch: patch.number))
    whole = _planned(sources, path, layout, patches, converted.ledgers, converted.embeddings)
    kept = {key for file in converted.files for target in file.targets for key in target.source.keys}

    def is_kept(target: Target) -> bool:
        return not kept.isdisjoint(target.source.keys)

    return replace(
        whole,
        files=tuple(replace(file, targets=tuple(filter(is_kept, file.targets))) for file in whole.files),
        steps=tuple(step for step in whole.steps if all(map(is_kept, step.targets))),
    )


def _planned(
    sources: Sources,
    path: Path,
    layout: OutputLayout,
    patches: tuple[Patch, ...],
    ledgers: tuple[Ledger, ...],
    embeddings: tuple[Embedding, ...],
) -> Plan:
    touched = touched_by(patches)
    check_rows(sources, touched)
    storage = storage_of(sources, touched)
    vae, vae_notes = replaced_by_vae(sources, storage)
    drafts, texts, told = _laid_out(sources, layout, storage, vae)
    targets = _by_key(target for draft in drafts for target in draft.targets)
    of_base = [target for target in targets.values() if target.data is None]
    steps = steps_of(sources, of_base, patches, storage.encoded)
    computed = {target.key for step in steps for target in step.targets}
    identity = identity_of(sources, layout, path.name if layout.is_folder else path.stem)
    files, digests = described(sources, layout, storage, drafts, path.name, identity)
    return Plan(
        sources=sources,
        path=path,
        layout=layout,
        files=with_twins(sources, layout, files, computed),
        texts={name: text for name, text in texts.items() if text is not None},
        copies=tuple(copies_of(target for target in of_base if target.key not in computed)),
        steps=steps,
        ledgers=ledgers,
        digests=digests,
        notes=(
            *told,
            *_of_cards(sources, layout),
            *vae_notes,
            *doubts_of(sources),
            *notes_of(sources, storage, touched, steps),
        ),
        identity=identity,
        embeddings=embeddings,
        given=tuple(
            Given(target.data, target.file, target.offset) for target in targets.values() if target.data is not None
        ),
        left_out=frozenset(name for name, text in texts.items() if text is None),
        copied=copied_beside(sources, layout) if layout.is_converted else {},
    )


def _laid_out(
    sources: Sources, layout: OutputLayout, storage: Storage, vae: Mapping[str, Stored]
) -> tuple[tuple[Draft, ...], dict[str, str | None], tuple[str, ...]]:
    """Lay out the files with weights; return them, the texts beside them (None for one that goes), and notes."""
    if layout.is_converted:
        from lorabake.planning.beside import texts_beside, told_of_file  # most bakes keep their layout
        from lorabake.planning.laid_out import laid_out

        made = laid_out(sources, layout, storage, vae)
        beside = texts_beside(sources, layout) if layout.is_folder else told_of_file(sources, layout)
        return made.drafts, {**made.indexes, **beside.texts}, (*made.notes, *beside.notes)
    drafts = tuple(drafts_of(sources, storage, vae))
    if not layout.is_folder:
        return drafts, {}, ()
    return drafts, {**configs_of(sources, storage, drafts), **indexes_of(sources, storage, drafts)}, ()


def _of_cards(sources: Sources, layout: OutputLayout) -> Iterator[str]:
    files = sources.base.side_files if sources.base.is_folder and layout.is_folder and not layout.is_converted else ()
    for name in (path.name for path in files if is_card(path)):
        yield f"{name} is left out, because it speaks of the base; `lorabake card` writes one for the output"


def _match(sources: Sources) -> tuple[tuple[Patch, ...], tuple[Ledger, ...]]:
    if not sources.loras:
        return (), ()
    base = _names_of(sources)
    matched = [match(base, number, lora) for number, lora in enumerate(sources.loras)]
    every = (patch for each in matched for patch in each.patches)
    patches = tuple(replace(patch, number=number) for number, patch in enumerate(every))
    check_patches(sources, patches)
    return patches, tuple(each.ledger for each in matched)


def _names_of(sources: Sources) -> BaseNames:
    """Index the names of the base's modules; once for all recipes that are planned together and add none to them."""
    make = partial(BaseNames, sources.key_map, sources.tie)
    return make() if sources.base_alone is None else once(make, "names", *sources.base_alone)


def _by_key(targets: Iterable[Target]) -> dict[str, Target]:
    """Map targets by their keys; raise InternalError for two of one key."""
    by_key: dict[str, Target] = {}
    for target in targets:
        if by_key.setdefault(target.key, target) is not target:
            raise InternalError(f"{target.key} is planned twice")
    return by_key
