"""Learned embeddings in LoRA files: vectors that stand for a new word of the text encoders.

No checkpoint can hold them, since its tokenizer does not know the word; files of textual inversion do. They call the
vectors `emb_params` where there is one text encoder (kohya-ss), `clip_l`, `clip_g` and `t5xxl` where there are more
(ComfyUI; the first two in AUTOMATIC1111, too).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lorabake.codecs.codec import Stored
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import EMBEDDING, TensorInfo

ALONE = "emb_params"

_BUNDLED = re.compile(r"bundle_emb\.(?P<token>.+?)\.(?P<part>string_to_param\.[^.]+|[^.]+)", re.DOTALL)
"""AUTOMATIC1111's and OneTrainer's keys: bundle_emb.ohwx.string_to_param.*, bundle_emb.ohwx.clip_l."""

_NAMES = {"t5": "t5xxl"}
"""OneTrainer's names that other programs have another one for."""

FOR_ONETRAINER = "_out"
"""How OneTrainer calls what it adds to a text encoder's output."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Say whose vectors a tensor holds: the word's, and for which text encoder."""

    token: str
    name: str
    info: TensorInfo

    @property
    def shape(self) -> tuple[int, int]:
        """Return how many vectors there are, and their width."""
        return (self.info.shape[0] if len(self.info.shape) == 2 else 1), self.info.shape[-1]


def read_vectors(stored: Stored, metadata: Mapping[str, str]) -> Vectors | None:
    """Recognise a learned embedding by its key, or by what the file's metadata say of it; None for anything else."""
    info = stored.tensor
    if info is None or len(info.shape) not in (1, 2) or not info.nbytes or not DTYPES[info.dtype].floating:
        return None
    if metadata.get(info.key) == EMBEDDING:
        return Vectors(info.key, ALONE, info)
    bundled = _BUNDLED.fullmatch(info.key)
    if bundled is None:
        return None
    part = bundled["part"]
    return Vectors(bundled["token"], ALONE if "." in part else _NAMES.get(part, part), info)


def file_stem(token: str) -> str:
    """Return what of a token may stand in a file's name: letters, digits, `_` and `-`."""
    return re.sub(r"[^\w-]", "", token)[:64] or "token"
