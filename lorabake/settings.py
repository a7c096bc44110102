"""Name what a caller can ask for as the reader of a message writes it: as an option of a command, or in Python.

The library's advice reaches both. It names a `Setting`, which is written as Python's unless a command is running.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_commands_running: set[object] = set()


@dataclass(frozen=True, slots=True)
class Setting:
    """Hold the two ways to write one setting; both may have a place for a value: {} or {!r}."""

    option: str
    argument: str

    def __str__(self) -> str:
        return self.option if _commands_running else self.argument

    def of(self, *values: object) -> str:
        """Write the setting with values in its places."""
        return str(self).format(*values)


@contextmanager
def as_options() -> Iterator[None]:
    """Write settings as options of the command line, in every thread, as long as this or another command runs.

    A command takes out only what it has put in itself: in whatever order commands end, none is left over.
    """
    command = object()
    try:
        _commands_running.add(command)
        yield
    finally:
        _commands_running.discard(command)


def are_options() -> bool:
    """Tell whether settings are written as options of the command line now."""
    return bool(_commands_running)


OVERWRITE: Final = Setting("--overwrite", "RunOptions(overwrite=True)")
WORKERS: Final = Setting("--workers 1", "RunOptions(workers=1)")
ON_CPU: Final = Setting("--device cpu", 'device="cpu"')
STAGES: Final = Setting("--stage structure --stage weights", 'VerifyOptions(stages=["structure", "weights"])')
SAMPLE_WEIGHTS: Final = Setting("--sample-weights", "sample_weights")
PROMPTS: Final = Setting("--prompt", "SampleOptions(prompts=[…])")
LOCK: Final = Setting("lorabake lock {1}", "lorabake.lock({0!r})")  # the path, as it is and as a shell takes it
UPDATE_LOCK: Final = Setting("lorabake lock --update {3} {1}", "lorabake.lock({0!r}, update=[{2!r}])")
FETCH: Final = Setting(
    "Fetch it with `lorabake fetch RECIPE`, or add --download to this command.",
    "Fetch it with lorabake.fetch(recipe).",
)
DOWNLOAD: Final = Setting("bake without --download", "do not call lorabake.fetch")
CHECKPOINT: Final = Setting("--baked FILE", "baked=…")
DIGEST: Final = Setting(
    " (the page of the file shows it); add --set {}.sha256=64_HEX_DIGITS",
    "; write {{path: https://…, sha256: 64 HEX DIGITS}}",
)
BLOCKS_OF_A_PROMPT: Final = "`lorabake init NEW.yaml --base BASE --prompt '<lora:NAME:1:1:lbw={}>' --lora-dir DIR`"
STATE: Final = Setting("bake with --provenance", "bake with a statement of provenance")
FETCHED: Final = Setting(
    "fetch it with `lorabake fetch RECIPE`, or add --download to `lorabake bake`",
    "fetch it with lorabake.fetch(recipe)",
)
AS_STRENGTH: Final = Setting(" (as an option --lora FILE=unet:0.5,{}:0)", "")
SET_WHOLE: Final = Setting("--set '{}={}'", "{!r}: {}")
SET: Final = Setting("--set {}={}", "{!r}: {}")
INPUTS: Final = Setting("--inputs DIR, once for each", "inputs=[…]")
CHANGES: Final = Setting("--set", "changes")
BASE: Final = Setting("--base", "base=…")
LORA: Final = Setting("--lora", "loras=…")
AS_BASE: Final = Setting(" (--base)", "")
AS_LORA: Final = Setting(" (as an option --lora)", "")

ONLY: Final = Setting("--only {}", "only={!r}")
ENGINE: Final = Setting("--engine {}", "BatchOptions(engine={!r})")
ADDRESS: Final = Setting("--address", "BatchOptions(address=…)")
LINK: Final = Setting("--link", "RunOptions(link=True)")
SHARD: Final = Setting("--shard {}", "BatchOptions(shard={!r})")
BATCH: Final = Setting("`lorabake batch {}`", "`lorabake.bake_all(lorabake.load_recipes({!r}))`")
BAKE: Final = Setting("lorabake bake RECIPE", "lorabake.bake(recipe)")
BAKE_ON_CPU: Final = Setting(f"{BAKE.option} --device cpu", 'lorabake.bake(recipe, RunOptions(device="cpu"))')
BAKE_OVER: Final = Setting(f"{BAKE.option} --overwrite", "lorabake.bake(recipe, RunOptions(overwrite=True))")
BAKE_QUIETLY: Final = Setting(f"{BAKE.option} --quiet", "lorabake.bake(recipe, RunOptions(bar=False))")
BAKE_IN_THREADS: Final = Setting(f"{BAKE.option} --workers 4", "lorabake.bake(recipe, RunOptions(workers=4))")
BAKE_AND_REPORT: Final = Setting(f"{BAKE.option} --report FILE", "lorabake.bake(recipe).report()")
VERIFY: Final = Setting("lorabake verify RECIPE --baked FILE", "lorabake.verify(recipe, baked)")
INSPECT: Final = Setting("`lorabake inspect {}`", "`lorabake.inspect({!r})`")


def filled(template: str) -> str:
    """Write a text of the program's own, in which {OVERWRITE} stands for that setting."""
    return re.sub(r"\{([A-Z_]+)\}", lambda place: str(globals()[place[1]]), template)


CARD_OVER: Final = Setting("lorabake card OUTPUT --overwrite", "write_card(card, overwrite=True)")
VERIFY_AND_REPORT: Final = Setting(
    "lorabake verify RECIPE --report DIR", "lorabake.report.write(lorabake.verify(recipe), folder)"
)
