"""CLIP's tokenizer, from the vocabulary that ships with lorabake."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

VOCABULARY = Path(__file__).parent.parent / "lorabake/verification/configs/clip/bpe_simple_vocab_16e6.txt.gz"


def tokenizer() -> CLIPTokenizer:
    """Make the tokenizer of SD 1.x, 49,408 tokens."""
    merges = gzip.decompress(VOCABULARY.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in (*printed, *range(256, 512 - len(printed)))]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
        made = CLIPTokenizer(str(Path(folder) / "vocab.json"), str(Path(folder) / "merges.txt"), model_max_length=77)
    assert len(made) == 49408
    return made
