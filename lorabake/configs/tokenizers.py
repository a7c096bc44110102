"""The files of CLIP's tokenizer, written from the shipped vocabulary."""

from __future__ import annotations

import gzip
import json
from functools import cache

from lorabake.configs import notes_of, shipped

VOCABULARY, LONGEST = 49408, 77
START, END = "<|startoftext|>", "<|endoftext|>"
"""What CLIP begins with; what it ends, and usually pads, with."""

OF_SECOND = "!"
"""What the second CLIP of a pair usually pads with."""


def padding_of(family: str, name: str) -> str:
    """Return what a family's CLIP tokenizer, `name` in its folder, pads with."""
    usual = OF_SECOND if name.endswith("_2") else END
    return str(notes_of(family).get("padding", {}).get(name, usual))


def clip_files(pad_token: str = END) -> dict[str, str]:
    """Write the files of CLIP's tokenizer: name -> text.

    vocab.json and merges.txt are, byte for byte, those of the Stable Diffusion folders on the hub.
    """
    words, merges = _vocabulary()
    special = {
        name: {"content": token, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        for name, token in (("bos_token", START), ("eos_token", END), ("unk_token", END))
    }
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": LONGEST,
        "pad_token": pad_token,
        "tokenizer_class": "CLIPTokenizer",
        **special,
    }
    numbered = {word: number for number, word in enumerate(words)}
    return {
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
        "special_tokens_map.json": _json({**special, "pad_token": pad_token}),
        "tokenizer_config.json": _json(config),
        "vocab.json": _json(numbered),
    }


@cache
def _vocabulary() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return CLIP's tokens in the order of their numbers, and the merges that make them."""
    packed = shipped().joinpath("clip", "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1 : VOCABULARY - 512 - 2 + 1]
    # Bytes that print stand for themselves, the others for the characters from U+0100 on.
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in (*printed, *range(256, 512 - len(printed)))]
    made = ("".join(merge.split()) for merge in merges)
    return (*letters, *(f"{letter}</w>" for letter in letters), *made, START, END), tuple(merges)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
