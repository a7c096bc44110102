"""What is this file? Tell sorts of files by the names and shapes of their tensors, whatever the files are called.

This is the one table of sorts. LoRAs and checkpoints are what remains. The kinds of LoRAs are in `adapters/` and the
families of checkpoints in `architectures/`, so `sources.sorts` tells these two apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from lorabake.documents.names import What
from lorabake.settings import filled


class Shaped(Protocol):
    """Anything with a shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the sizes of its dimensions."""
        ...


@dataclass(frozen=True, slots=True)
class Marks:
    """Say by what a sort is known.

    Each pattern in `some` fits a key, `every` fits all keys, and `none` fits no key. Where `sides` are given, a
    tensor whose key fits the first pattern of `some` has one of these numbers of dimensions.
    """

    some: tuple[str, ...]
    every: str = ""
    none: str = ""
    sides: tuple[int, ...] = ()

    def fit(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Tell whether tensors with these keys and shapes have the marks."""
        if self.every and not all(map(_pattern(self.every).fullmatch, shapes)):
            return False
        if self.none and any(map(_pattern(self.none).fullmatch, shapes)):
            return False
        if not all(any(map(_pattern(pattern).fullmatch, shapes)) for pattern in self.some):
            return False
        first = _pattern(self.some[0])
        return not self.sides or any(len(shapes[key]) in self.sides for key in shapes if first.fullmatch(key))


@dataclass(frozen=True, slots=True)
class Sort:
    """Describe a sort of file: what `inspect` calls it, what messages call it, and what to do with such a file.

    `is_no_base` says that no LoRA can be baked into it.
    """

    name: What
    title: str
    template: str
    marks: tuple[Marks, ...] = ()
    is_no_base: bool = False

    @property
    def advice(self) -> str:
        """Say what to do instead."""
        return filled(self.template)


ADAPTER = r".*(?:lora_|_lora\.|hada_|lokr_|oft_).*|.*\.diff(?:_b)?"
"""Keys that only LoRAs have, by the words in them; a LoRA may be on any of these networks."""

BESIDE = "It runs beside a checkpoint, and is no part of it: load it in the program that makes the pictures."

MOST = 10_000
"""Most tensors of a file that can be of one of these sorts; language models may have many more."""

LORA = Sort(
    "lora",
    "a LoRA",
    "Name it under loras{AS_LORA}, and as base{AS_BASE} the checkpoint that it was trained on.",
    is_no_base=True,
)
CHECKPOINT = Sort(
    "checkpoint",
    "a checkpoint",
    "Name it as base. A LoRA is a smaller file that was trained on such a checkpoint.",
)
EMPTY = Sort("empty", "a file without tensors", "Download it again, or save it anew.", is_no_base=True)
VAE = Sort(
    "vae",
    "a VAE",
    "Name it under vae, and it takes the place of the base's own.",
    (
        Marks(
            every=r"(?:first_stage_model\.|vae[./])?(?:encoder|decoder|quant_conv|post_quant_conv|bn|conv1|conv2|loss"
            r"|latents_mean|latents_std|per_channel_statistics)(?:\..*)?",
            some=(r"(?:first_stage_model\.|vae[./])?(?:encoder|decoder)\..*weight",),
            none=ADAPTER,
            sides=(4, 5),
        ),
    ),
)

SORTS = (
    VAE,
    Sort(
        "textual_inversion",
        "a textual inversion",
        "It is a new word for prompts, and no checkpoint can hold it: put it where programs look for embeddings.",
        (
            Marks(some=(r".*",), every=r"emb_params|clip_l|clip_g|t5xxl|string_to_param\..*|<[^<>]+>"),
            Marks(some=(r"string_to_param(?:\..*)?", r"string_to_token(?:\..*)?")),
        ),
        is_no_base=True,
    ),
    Sort(
        "embeddings",
        "the embeddings of a language model",
        "They are a part of a model: give the whole model.",
        (
            Marks(
                some=(r".*",),
                every=r"(?:model\.)?(?:embed_tokens|wte|word_embeddings|token_embedding|lm_head|input_embeddings"
                r"|output_embeddings)(?:\.weight)?",
            ),
        ),
    ),
    Sort(
        "hypernetwork",
        "a hypernetwork",
        "It changes a model while that runs, and cannot be baked: use it in the program that it was made for.",
        (
            Marks(some=(r".*",), every=r"\d+\.[01]\.linear(?:[12]|\.\d+)\.(?:weight|bias)"),
            Marks(some=(r"layer_structure", r"activation_func")),
        ),
        is_no_base=True,
    ),
    Sort(
        "control_lora",
        "a Control-LoRA",
        "It makes a ControlNet out of a UNet, and changes no checkpoint.",
        (Marks(some=(r"lora_controlnet",)),),
        is_no_base=True,
    ),
    Sort(
        "controlnet",
        "a ControlNet",
        f"{BESIDE} Only a LoRA that was trained on the ControlNet itself takes it as base.",
        (
            Marks(
                some=(
                    r"(?:control_model\.|controlnet[./])?(?:input_hint_block\.0\.weight|zero_convs\.0\.0\.weight"
                    r"|controlnet_(?:cond_embedding|down_blocks|blocks|mid_block|x_embedder)\..*"
                    r"|control_(?:layers|blocks)\.0\..*|lllite_.*)",
                ),
                none=rf"model\.diffusion_model\..*|(?:unet|transformer)/.*|{ADAPTER}",
            ),
        ),
    ),
    Sort(
        "t2i_adapter",
        "a T2I-Adapter",
        BESIDE,
        (
            Marks(
                some=(r"(?:adapter\.)?body\.\d+\.(?:resnets\.\d+\.)?block[12]\.weight",),
                every=r"(?:adapter\.)?(?:body|conv_in)\..*",
                none=ADAPTER,
                sides=(4,),
            ),
        ),
    ),
    Sort(
        "ip_adapter",
        "an IP-Adapter",
        BESIDE,
        (
            Marks(
                some=(r"ip_adapter\..*|.*\.ip_adapter_.*|.*\.to_k_ip\..*",),
                every=r"(?:image_proj|image_proj_model|ip_adapter|ip_adapter_proj_model|adapter_modules)\..*"
                r"|.*\.(?:ip_adapter_|to_[kv]_ip\.).*",
            ),
        ),
        is_no_base=True,
    ),
    Sort(
        "upscaler",
        "an upscaler",
        "It enlarges pictures, and is no part of a checkpoint: load it in the program that makes the pictures.",
        (
            Marks(some=(r"(?:params\.|params_ema\.|module\.)?conv_first\.weight",), sides=(4,)),
            Marks(some=(r"model\.0\.weight", r"model\.1\.sub\.\d+\..*"), sides=(4,)),
            Marks(
                some=(r"(?:params\.|params_ema\.)?body\.0\.weight",),
                every=r"(?:params\.|params_ema\.)?body\.\d+\.(?:weight|bias)",
                sides=(4,),
            ),
        ),
    ),
    Sort(
        "image_encoder",
        "an image encoder (CLIP vision or the like)",
        "It reads pictures for other models, and is no part of a checkpoint: give the file of the model itself.",
        (
            Marks(
                some=(r"(?:.*[./])?(?:vision_model\.embeddings\.patch_embedding|visual\.conv1)\.weight",),
                every=r"(?:model\.|image_encoder[./]|vision_tower\.)?(?:vision_model|visual|visual_projection"
                r"|vision_projection)\..*|logit_scale",
                none=ADAPTER,
                sides=(4,),
            ),
        ),
    ),
    Sort(
        "optimizer_state",
        "the state of an optimizer",
        "It serves to go on with a training: give the weights that were saved beside it.",
        (
            Marks(some=(r"(?:.*\.)?(?:exp_avg|exp_avg_sq|momentum_buffer|square_avg|exp_inf)(?:\..*)?",),
                  every=r"(?:.*\.)?(?:exp_avg|exp_avg_sq|max_exp_avg_sq|momentum_buffer|square_avg|exp_inf|step|state"
                  r"|param_groups)(?:\..*)?"),
            Marks(some=(r"state(?:\..*)?", r"param_groups(?:\..*)?"), every=r"(?:state|param_groups)(?:\..*)?"),
            Marks(some=(r"optimizer_state_dict(?:\..*)?",)),
        ),
        is_no_base=True,
    ),
)  # fmt: skip
"""All sorts that names and shapes tell, in no order: no file is of two."""


def sort_of(tensors: Mapping[str, Shaped]) -> Sort | None:
    """Return the sort of a file with these tensors; None for checkpoints, LoRAs, and what nobody knows."""
    if not tensors or len(tensors) > MOST:
        return None if tensors else EMPTY
    shapes = {key: info.shape for key, info in tensors.items()}
    return next((sort for sort in SORTS if any(marks.fit(shapes) for marks in sort.marks)), None)


def sort_of_names(names: Iterable[str]) -> Sort | None:
    """Return the sort of a file of which only names are known; None where they do not tell."""
    shapes = dict.fromkeys(names, ())
    marked = ((sort, marks) for sort in SORTS for marks in sort.marks if not marks.sides)
    return next((sort for sort, marks in marked if marks.fit(shapes)), None) if shapes else None


@cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL)
