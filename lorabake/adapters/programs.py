"""The programs whose reading of a LoRA a recipe may ask for (`semantics`)."""

from __future__ import annotations

PROGRAMS = {
    "comfyui": "ComfyUI",
    "forge": "Forge",
    "a1111": "AUTOMATIC1111",
    "peft": "PEFT",
    "lycoris": "LyCORIS",
}
"""By the names that recipes have for them, what they are called."""

EVERY = frozenset(PROGRAMS)

OF_KOHYA = EVERY - {"peft"}
"""Those that read the files of kohya's scripts and of LyCORIS."""

SCALE_OF_ALPHA_0 = {"comfyui": 0.0, "forge": 0.0, "a1111": 0.0, "lycoris": 1.0}
"""What takes the place of alpha/rank where alpha is 0: LyCORIS puts the rank for alpha, the others divide 0 by it."""

SKIPPING_STRENGTH_0 = frozenset({"comfyui"})
"""Those that do not load a LoRA whose strengths are all 0; the others load it, and apply their laws."""


def core_unread(program: str, weight: tuple[int, ...]) -> str | None:
    """Say why a program cannot fold in a Tucker core: most do for two dimensions alone. None if it can."""
    if len(weight) != 4 and program in ("comfyui", "forge", "a1111"):
        return f"{PROGRAMS[program]} fails at Tucker cores but on 2-D convolutions"
    return None
