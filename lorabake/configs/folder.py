"""Write what a diffusers folder has beside its weights, where it is made of a single file.

In: what headers tell, and which networks the folder has. Out: texts by their paths in the folder, and what it lacks.
No library is asked: the same headers give the same bytes anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lorabake.configs import SCHEDULER, SCHEDULER_CONFIG, Told, family_config, notes_of
from lorabake.configs.sizes import Config, SizeUnknownError
from lorabake.configs.tokenizers import clip_files, padding_of
from lorabake.visible import short_repr

DIFFUSERS_VERSION = "0.42.1"
"""The diffusers whose fields the configurations have: a fact of them, whichever version is installed."""

INDEX = "model_index.json"
CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True, slots=True)
class Missing:
    """Name a part of the pipeline that the folder lacks: its folder, and the library and class that read it."""

    name: str
    library: str
    maker: str
    is_config: bool = False
    """Whether its weights are there, and only its configuration is missing."""

    def __str__(self) -> str:
        return f"{self.place} ({self.maker})"

    @property
    def place(self) -> str:
        """Return what has to be put into the folder: a folder of its own, or one file."""
        return f"{self.name}/config.json" if self.is_config else self.name


@dataclass(frozen=True, slots=True)
class FolderTexts:
    """Hold the texts of a folder, by path, and what it lacks before its pipeline can be loaded."""

    __repr__ = short_repr

    texts: Mapping[str, str]
    missing: tuple[Missing, ...]
    is_known: bool = True
    """Whether lorabake has configurations of the family at all."""


def folder_texts(told: Told, networks: Collection[str], copied: Collection[str] = ()) -> FolderTexts:
    """Write the texts of a folder that has the weights of these networks.

    `copied` are components that bring their own texts. model_index.json names the whole pipeline, so that a folder
    that lacks something is whole once that is put into it; what the pipeline can do without is null there. A network
    whose size the header does not tell has no configuration. Raise SizeUnknownError for the pipeline itself.
    """
    index = family_config(told, "", INDEX)
    if index is None:
        return FolderTexts({}, (), is_known=False)
    optional = {*notes_of(told.family).get("optional", ())}
    texts: dict[str, str] = {}
    missing: list[Missing] = []
    for name, said in index.items():
        if not isinstance(said, list) or said[0] is None or name in copied:
            continue
        library, maker = said
        made = _texts_of(told, name, maker, networks)
        reads_for = name.replace("tokenizer", "text_encoder")  # a network is read by itself
        if name in optional and reads_for not in networks:
            index[name] = [None, None]
        elif made is not None:
            texts |= {f"{name}/{file}": text for file, text in made.items()}
        else:
            missing.append(Missing(name, library, maker, is_config=name in networks))
    texts[INDEX] = _json(_versioned(index))
    return FolderTexts(dict(sorted(texts.items())), tuple(missing))


def _texts_of(told: Told, name: str, maker: str, networks: Collection[str]) -> dict[str, str] | None:
    """Write the files of one component; None where lorabake cannot, or where its weights are missing."""
    if maker in CLIP_TOKENIZERS:
        return clip_files(padding_of(told.family, name))
    file = SCHEDULER_CONFIG if name == SCHEDULER else "config.json"
    if name != SCHEDULER and name not in networks:
        return None
    try:
        config = family_config(told, name, file)
    except SizeUnknownError:  # it is told as missing
        return None
    return None if config is None else {file: _json(_versioned(config))}


def _versioned(config: Config) -> Config:
    """Add the version of diffusers to what its classes read; transformers' configurations have no class name."""
    return {**config, "_diffusers_version": DIFFUSERS_VERSION} if "_class_name" in config else config


def _json(config: Config) -> str:
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
