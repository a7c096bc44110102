"""Make tokenizers for sampling: CLIP's of the shipped vocabulary, others of folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorabake.configs.tokenizers import END, VOCABULARY, clip_files
from lorabake.errors import FileError, SurroundingsError, first_line
from lorabake.planning import Plan
from lorabake.verification.samples.foreign_code import NO_CODE, check_folder
from lorabake.verification.samples.refusals import CannotDrawError

EXTRA = "install the extra: in the clone of lorabake, pip install '.[verify]'"


def clip_tokenizer(pad_token: str = END) -> Any:
    """Make CLIP's tokenizer of the files that a folder made of a single file gets.

    Raise SurroundingsError where transformers makes another vocabulary of it: a tokenizer without its files has two
    tokens, and every prompt becomes filler.
    """
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory(prefix="lorabake-") as name:
        for file, text in clip_files(pad_token).items():
            (Path(name) / file).write_text(text, encoding="utf-8")
        made = CLIPTokenizer.from_pretrained(name, local_files_only=True)
    if len(made) != VOCABULARY:
        raise SurroundingsError(f"transformers made a tokenizer of {len(made)} tokens, not {VOCABULARY}; {EXTRA}")
    return made


def check_words(tokenizer: Any, texts: Iterable[str], rows: int, encoder: str) -> None:
    """Raise CannotDrawError where a tokenizer makes numbers of texts that an embedding of so many rows has not."""
    largest = max((number for text in texts for number in tokenizer(text).input_ids), default=0)
    if largest >= rows:
        raise CannotDrawError(
            f"the tokenizer has {len(tokenizer):,} tokens, and {encoder} knows {rows:,}: it is another model's; "
            "name the folder of its own in verify.tokenizers"
        )


def given_tokenizer(plan: Plan, name: str, maker: str) -> Any:
    """Read the tokenizer in the folder of verify.tokenizers by a class of transformers; None where none is named."""
    import transformers

    said = plan.sources.recipe.verify
    if said is None or said.tokenizers is None:
        return None
    folder = plan.sources.recipe.locate(said.tokenizers)
    if not folder.is_dir():
        raise FileError(f"{folder}: verify.tokenizers must be a folder with a tokenizer")
    return read_tokenizer(getattr(transformers, maker), folder / name if (folder / name).is_dir() else folder)


def read_tokenizer(maker: Any, folder: Path) -> Any:
    """Read a tokenizer or a processor by a class of transformers; raise CannotDrawError where it cannot be."""
    check_folder(folder)
    try:
        return maker.from_pretrained(folder, **NO_CODE)
    except Exception as error:  # whatever a library says of files that it cannot read
        raise CannotDrawError(f"{folder}: no {maker.__name__} can be read: {first_line(error)}") from error
