"""What a bake is told beside its recipe: how to run."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from lorabake import arguments
from lorabake.errors import ArgumentError
from lorabake.machine import default_workers
from lorabake.progress import unseen
from lorabake.recipe.given import EXAMPLE
from lorabake.visible import at_a_glance, short_repr


@arguments.well_made
@dataclass(frozen=True, slots=True)
class RunOptions:
    """Say how to bake. Only the device influences bytes: the last bits differ between device classes.

    `device` is torch's name for one, or "auto": the accelerator that torch has, or else the CPU. Without it counts
    LORABAKE_DEVICE in the environment, and without that "auto". `overwrite` lets a bake replace a target that holds
    something else; without `fsync` it does not wait for the disk. With `force`, it bakes even if the output is there
    already, of this recipe and these inputs. With `locked`, the recipe's lock has to be there and to fit, and every
    input is digested while it streams. With `link`, files of a folder that stay as they are become hard links to the
    base's own, where the file system lets them.

    `progress` receives counts of finished bytes, `warn` messages about fallbacks; both from any thread. Without a
    `progress` of its own, a run in a notebook shows a bar, unless `bar` is False. `done` is called once the target is
    the new one: nothing that happens later can undo that.

    Raise ArgumentError for a value of another type, or out of its range.

    Examples:
        >>> lorabake.RunOptions(workers=2, overwrite=True).workers
        2
    """

    __repr__ = short_repr

    device: str | None = None
    workers: int = field(default_factory=default_workers)
    overwrite: bool = False
    fsync: bool = True
    force: bool = False
    locked: bool = False
    link: bool = False
    progress: Callable[[int], None] = unseen
    warn: Callable[[str], None] = unseen
    done: Callable[[], None] = unseen
    bar: bool = True

    def __post_init__(self) -> None:
        checked = {
            "device": arguments.device_name(self.device, "device"),
            "workers": arguments.whole(self.workers, "workers", 1),
            **{
                name: arguments.yes_or_no(getattr(self, name), name)
                for name in ("overwrite", "fsync", "force", "locked", "link", "bar")
            },
            "progress": arguments.called(self.progress, "progress", "lambda count: None"),
            "warn": arguments.called(self.warn, "warn", "print"),
            "done": arguments.called(self.done, "done", "lambda: None"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def options_of(options: RunOptions | None) -> RunOptions:
    """Return the options, or those that count without any; raise ArgumentError for anything else."""
    if options is None or isinstance(options, RunOptions):
        return options or RunOptions()
    is_lora = isinstance(options, (str, list, dict, os.PathLike))
    advice = f"Write {EXAMPLE}." if is_lora else "Write options=RunOptions(workers=2)."
    raise ArgumentError(f"options must be RunOptions(…), not {at_a_glance(options)}", advice)
