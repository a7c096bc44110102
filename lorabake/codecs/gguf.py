"""GGUF's quantised types: blocks of values that the gguf package knows how to unpack."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorabake.codecs.codec import Codec, Parts, Stored
from lorabake.tensors.gguf import GGUF
from lorabake.tensors.header import TensorInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Gguf(Codec):
    """Unpack blocks of a type, by ggml's name for it: Q4_K."""

    kind: str

    name = "gguf"
    in_safetensors = False

    @classmethod
    def recognise_alone(cls, info: TensorInfo) -> Stored | None:
        """Take a tensor whose dtype the reader of GGUF files calls so."""
        if not info.dtype.startswith(GGUF):
            return None
        data = replace(info, dtype="U8", shape=(info.nbytes,))
        return Stored(info.key, info.name, info.shape, cls(info.dtype.removeprefix(GGUF)), {"data": data})

    def title(self, stored: Stored) -> str:
        """Name the type."""
        return f"{GGUF}{self.kind}"

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Unpack as the gguf package does."""
        import numpy as np
        import torch
        from gguf import GGMLQuantizationType
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import dequantize

        kind, data = GGMLQuantizationType[self.kind], parts["data"]
        _, width = GGML_QUANT_SIZES[kind]
        values = dequantize(data.cpu().numpy().reshape(-1, width), kind)
        whole = np.ascontiguousarray(values, dtype=np.float32).reshape(stored.shape)
        return torch.from_numpy(whole).to(data.device, dtype)


CODECS = (Gguf,)
