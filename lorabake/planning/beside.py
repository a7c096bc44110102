"""Compose the files beside the weights of a folder that is made of a single file.

The texts are those of `configs.folder`: what `verify` builds and what a bake writes come from one function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lorabake.configs import V_PRED, VELOCITY, Told
from lorabake.configs.folder import INDEX, FolderTexts, Missing, folder_texts
from lorabake.configs.sizes import SizeUnknownError
from lorabake.errors import FileError
from lorabake.planning.layout import OutputLayout
from lorabake.sources import Sources

MISSING = "MISSING.txt"
"""The file of a folder that says what has to be added before its pipeline can be loaded."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Hold the texts of files, by their paths below the output, and what is to be told of them."""

    texts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def texts_beside(sources: Sources, layout: OutputLayout) -> Beside:
    """Compose the texts of a converted folder: its list of components, and what each says of itself.

    Raise FileError where the header does not tell how large a network is.
    """
    told = told_of(sources)
    try:
        made = folder_texts(told, {place.component for place in layout.places}, _configured(sources))
    except SizeUnknownError as error:
        raise FileError(
            f"{sources.base.path}: {error}", "Remove output.layout: the output then has the base's names and form."
        ) from None
    title = sources.key_map.architecture.title
    if not made.is_known:
        return Beside(
            notes=(
                f"the folder has weights alone: lorabake has no configurations of {title}; copy {INDEX} and each "
                "config.json from another folder of this model",
            )
        )
    alone = [place for place in layout.places if not place.folder]
    texts = _at_the_top(made.texts, alone[0].component) if alone else dict(made.texts)
    missing = () if alone else made.missing
    if missing:
        texts[MISSING] = _text(title, missing)
    return Beside(texts, (*_missing(title, missing), *_predicted(sources, told, made)))


def told_of_file(sources: Sources, layout: OutputLayout) -> Beside:
    """Say what a single file made of a folder lacks: networks of the pipeline, and what only a folder can say."""
    told = told_of(sources)
    try:
        made = folder_texts(told, {place.component for place in layout.places})
    except SizeUnknownError:
        return Beside()
    notes = []
    if lacking := [str(each) for each in made.missing if not each.is_config and _is_network(each)]:
        notes.append(f"the file lacks {', '.join(lacking)}: programs load what is missing from files of its own")
    predicted = sources.evidence.schedule.get("prediction_type")
    if predicted == VELOCITY and V_PRED not in sources.base.tensors:
        notes.append(
            f"the folder's scheduler says {VELOCITY}, and the file has no tensor {V_PRED} that would say so: "
            "set it in the program that loads the file"
        )
    return Beside(notes=tuple(notes))


def _is_network(part: Missing) -> bool:
    return not part.name.startswith(("tokenizer", "feature_extractor"))


def _configured(sources: Sources) -> tuple[str, ...]:
    """List the parts that bring their own texts: all that are no network, and networks with a configuration."""
    return tuple(
        part.name
        for part in sources.parts
        if not part.checkpoint.tensors or any(side.name == "config.json" for side in part.beside)
    )


def told_of(sources: Sources) -> Told:
    """Gather what the headers and the recipe tell of the base."""
    said = sources.recipe.verify
    prediction = said.prediction if said is not None else None
    return Told.by(sources.key_map, sources.base.metadata, prediction, sources.evidence.configs)


def _at_the_top(texts: Mapping[str, str], component: str) -> dict[str, str]:
    """Return the texts of the folder of one network: those of the network alone, without its folder's name."""
    start = f"{component}/"
    return {path.removeprefix(start): text for path, text in texts.items() if path.startswith(start)}


def _missing(title: str, missing: tuple[Missing, ...]) -> Iterator[str]:
    if missing:
        names = ", ".join(map(str, missing))
        them = "it" if len(missing) == 1 else "them"
        yield (
            f"the folder lacks {names}: name {them} in output.parts ({missing[0].name}: PATH), or copy {them} from "
            f"another folder of {title}"
        )


def _text(title: str, missing: Iterable[Missing]) -> str:
    lines = "".join(f"  {each.place} - read by {each.library}.{each.maker}\n" for each in missing)
    return (
        f"This folder was made of a file that does not hold all of {title}.\n"
        f"Add these before its pipeline is loaded:\n\n{lines}\n"
        "Any diffusers folder of the same model has them. This file may be removed then.\n"
    )


def _predicted(sources: Sources, told: Told, made: FolderTexts) -> Iterator[str]:
    """Say that a guess was made where a family's models do not all predict the same."""
    schedule = made.texts.get("scheduler/scheduler_config.json", "")
    if told.prediction is None and f'"prediction_type": "{VELOCITY}"' in schedule:
        title = sources.key_map.architecture.title
        yield (
            f"nothing in the base says what it predicts: the scheduler says {VELOCITY}, as for most of {title}; "
            "if yours predicts noise, write verify: {prediction: epsilon, …}"
        )
