"""What was wanted of a base and its LoRAs, as another program said it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """Hold one use of a LoRA: the name that the program has for its file, and how strongly it is applied.

    `model` is the strength for the UNet or transformer, `text` that for the text encoders. `blocks` are the program's
    block weights, or (). `sha256` is the beginning of the digest that the program wrote down, or "".
    """

    name: str
    model: float = 1.0
    text: float = 1.0
    blocks: tuple[float, ...] = ()
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Hold all that a prompt or a picture says that a recipe can hold.

    `base` is the program's name for the checkpoint; `notes` say what the recipe leaves out.
    """

    calls: tuple[Call, ...] = ()
    base: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    steps: int | None = None
    size: tuple[int, int] | None = None
    guidance: float | None = None
    notes: tuple[str, ...] = ()
