"""The whole story of a bake: open, plan, check what would be lost, execute, complete, commit.

Each step takes the result of the one before. What a bake is told is in `options`, and what it tells in `results`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, Unpack

from lorabake import arguments
from lorabake.errors import ArgumentError
from lorabake.execution import Executed, execute
from lorabake.execution.agenda import Agenda
from lorabake.interrupts import held
from lorabake.machine import check_room_for, worded
from lorabake.options import RunOptions, options_of
from lorabake.planning import Plan
from lorabake.planning import plan as plan_of
from lorabake.planning.cautions import Caution, cautions_of, cautions_of_recipe, check_survival
from lorabake.planning.checks import within_folder
from lorabake.planning.links import linked
from lorabake.progress import NotebookBar, unseen
from lorabake.recipe.given import WHOLE, Given, OutputGiven, RecipeKeys, recipe_and_path, takes_a_recipe
from lorabake.results import BakeResult
from lorabake.sources import resolve
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.once import shared
from lorabake.visible import at_a_glance
from lorabake.writing.inputs import Inputs, check_inputs
from lorabake.writing.output import Output
from lorabake.writing.together import Outputs

if TYPE_CHECKING:
    from lorabake.artifacts.current import Watches


@takes_a_recipe
def plan(recipe: Given | None = None, output: OutputGiven | None = None, **keys: Unpack[RecipeKeys]) -> Plan:
    """Plan a bake from headers, and from what little else of the inputs decides something.

    `recipe` is the path of a YAML file, a mapping with the same keys, or what `load_recipe` returned. `output`
    overrides a recipe's path; a folder that is there gets a file of the recipe's name. Keywords can take the recipe's
    place:

    - `base`: the checkpoint that LoRAs are baked into.
    - `loras`: a list of paths and mappings, as in YAML, or a mapping from each path to its strength.
    - `vae`, `method`, `compose`, `compute_dtype`, `verify`: the other keys of a recipe.
    - `output`: where the checkpoint goes, or a mapping with `path`, `dtype` and the other keys of a recipe's output.

    Paths in mappings and keywords start from the current folder.

    Raise RecipeError for a faulty recipe, FileError for a faulty input, MatchError for a LoRA that does not fit
    whole, TargetError for an output that is an input or of the wrong form.

    Examples:
        >>> loras = {"lora.safetensors": 0.8}
        >>> planned = lorabake.plan(base="base.safetensors", loras=loras, output="out.safetensors")
        >>> planned.ledgers[0].applied
        12
        >>> lorabake.plan("recipe.yaml").path.name
        'out.safetensors'
    """
    given, path = recipe_and_path(recipe, output, keys, RunOptions)
    sources = resolve(given)
    return plan_of(sources, within_folder(sources, path) if path else None)


@takes_a_recipe
def bake(
    recipe: Given | Plan | None = None,
    options: RunOptions | None = None,
    *,
    output: OutputGiven | None = None,
    **keys: Unpack[RecipeKeys],
) -> BakeResult:
    """Bake a recipe, or a plan made of one, and return what was written.

    `recipe` is the path of a YAML file, a mapping with the same keys, or what `load_recipe` or `plan` returned.
    `output` overrides a recipe's path. Keywords can take the recipe's place, as in `plan`: `base`, `loras`, `vae`,
    `method`, `compose`, `compute_dtype`, `verify`, and `output`, which may be a mapping.

    Raise a LorabakeError for whatever stops it; then the target is what it was before. A KeyboardInterrupt may also
    come just after the target has become the new one: `RunOptions.done` tells.

    Examples:
        >>> result = lorabake.bake("recipe.yaml", output="first.safetensors")
        >>> result = lorabake.bake(
        ...     base="base.safetensors",
        ...     loras={"lora.safetensors": {"unet": 0.5, "text_encoder": 0.2}},
        ...     output="second.safetensors",
        ... )
        >>> result.path.name, result.size == result.path.stat().st_size
        ('second.safetensors', True)
    """
    if isinstance(recipe, Plan):
        if output is not None or keys:
            raise ArgumentError(WHOLE, "Make another plan: plan(recipe, output).")
        planned = recipe
    else:
        options = options_of(options)
        planned = plan(recipe, output, **keys)
    (result,) = bake_together((planned,), options)
    return result


@arguments.well_called('bake_together(["one.yaml", "two.yaml"])')
def bake_together(recipes: Sequence[Given | Plan], options: RunOptions | None = None) -> tuple[BakeResult, ...]:
    """Bake recipes, or plans made of them, on one base side by side; return what was written, in their order.

    A tensor of the base from which several of them compute is read once, and the bytes are those of single bakes.
    What stops one stops all; each target is what it was, or complete. `RunOptions.done` is called once all are.
    """
    options = options_of(options)
    if not isinstance(recipes, (list, tuple)):
        raise ArgumentError(
            f"bake_together takes a list of recipes, not {at_a_glance(recipes)}", "For one recipe: bake(recipe)."
        )
    return bake_pass(recipes, options) if recipes else ()


class Restart(Protocol):
    """Go on where a stopped batch, or other processes, have left what is finished, with receipts.

    `is_shared` tells that other processes share the folder in which the output is made.
    """

    is_shared: bool

    def complete(self, plan: Plan, made: Callable[[], None]) -> None:
        """Complete an output that was there but for its name; `made` is called if it is of this plan."""

    def keep(self, output: Output) -> bool:
        """Tell whether what was left of an output is of use."""

    def agenda(self, inputs: Inputs, outputs: Sequence[Output], progress: Callable[[int], None]) -> Agenda:
        """Say what is left to do; the outputs are there, and what is finished is noted in them."""


def bake_pass(
    recipes: Sequence[Given | Plan], options: RunOptions, restart: Restart | None = None
) -> tuple[BakeResult, ...]:
    """Do what `bake_together` says; with `restart`, go on where a batch was stopped."""
    from lorabake.artifacts.current import Current, Watches, find_current, keep_receipt  # a plan does without
    from lorabake.artifacts.watch import Watch

    began = time.perf_counter()
    with worded(), NotebookBar(shown=options.bar and options.progress is unseen) as bar:
        plans = [recipe if isinstance(recipe, Plan) else plan(recipe) for recipe in recipes]
        plans = [linked(planned) for planned in plans] if options.link else plans
        with shared():
            watches = [Watch.of(planned, locked=options.locked) for planned in plans]
        if restart is not None:
            for watch in watches:
                restart.complete(watch.plan, partial(keep_receipt, watch))
        standing = [None if options.force else find_current(watch, options.device) for watch in watches]
        pairs = [*zip(watches, standing, strict=True)]
        due = Watches([(watch, state) for watch, state in pairs if not isinstance(state, Current)])
        baked = iter(_baked(due, options, bar, began, restart) if due.plans else ())
        if not due.plans:
            options.done()
    seconds = time.perf_counter() - began
    return tuple(
        BakeResult.standing(watch.plan, state, seconds) if isinstance(state, Current) else next(baked)
        for watch, state in pairs
    )


def _baked(
    watches: Watches, options: RunOptions, bar: NotebookBar, began: float, restart: Restart | None
) -> tuple[BakeResult, ...]:
    """Bake plans whose outputs are not there yet."""
    plans, started = watches.plans, time.time_ns()
    if any(planned.steps for planned in plans):
        check_room_for("torch", options.workers)
    told = [_warn_of_recipe(planned, options.warn) for planned in plans]
    kept = [_check_survival(planned, options.warn) for planned in plans]
    with (
        Inputs(*plans, watched=watches.paths) as inputs,
        Outputs(
            plans,
            inputs,
            overwrite=options.overwrite,
            fsync=options.fsync,
            keep=restart.keep if restart is not None else None,
            shared=restart is not None and restart.is_shared,
        ) as outputs,
    ):
        bar.begin("baking", sum(planned.copied_bytes + planned.baked_bytes for planned in plans))
        progress = bar.advance if options.progress is unseen else options.progress
        executed = execute(
            plans,
            inputs,
            [output.weights for output in outputs],
            device=options.device,
            workers=options.workers,
            progress=progress,
            warn=options.warn,
            watched=watches.paths,
            digested=watches.check,
            agenda=restart.agenda(inputs, [*outputs], progress) if restart is not None else None,
        )
        check_inputs(inputs, plans, [outcome.digests for outcome in executed])
        watches.check_executed(executed, options.warn)
        cautions = [_warn(*each, options.warn) for each in zip(executed, kept, told, strict=True)]
        computed_at = time.perf_counter()
        complete = [
            output.complete(outcome.hashes, outcome.digests, outcome.device)
            for output, outcome in zip(outputs, executed, strict=True)
        ]
        with held():
            for output in complete:
                output.commit()
            options.done()
            outputs.clean()
    outputs.tell_copied(options.warn)
    outputs.tell_left(options.warn)
    watches.keep(executed, inputs.seen, started, options.warn)
    ended = time.perf_counter()
    seconds, sync_seconds = ended - began, ended - computed_at
    return tuple(
        BakeResult.of(*found, seconds=seconds, sync_seconds=sync_seconds)
        for found in zip(executed, kept, cautions, strict=True)
    )


def _check_survival(plan: Plan, warn: Callable[[str], None]) -> dict[int, float]:
    """Estimate what a coarse output keeps of each LoRA; warn where that is little, and stop where it is less."""
    targets = (target for step in plan.steps if step.patches for target in step.targets)
    if not any(DTYPES[target.dtype].is_coarse for target in targets):
        return {}
    from lorabake.reference.survival import survival

    shares = survival(plan)
    for warning in check_survival(plan, shares):
        warn(warning)
    return shares


def _warn_of_recipe(plan: Plan, warn: Callable[[str], None]) -> set[str]:
    """Warn before the work of what the recipe and headers tell; return the warnings."""
    warnings = [str(caution) for caution in cautions_of_recipe(plan)]
    for warning in warnings:
        warn(warning)
    return {*warnings}


def _warn(
    executed: Executed, kept: dict[int, float], told: set[str], warn: Callable[[str], None]
) -> tuple[Caution, ...]:
    """Warn of LoRAs that change nothing, get lost or are absurd; what was told before is not told again.

    With `kept`, what gets lost was told, too.
    """
    cautions = list(cautions_of_recipe(executed.plan, executed.input_sha256))
    seen = cautions_of(executed.plan, executed.tallies)
    cautions += [caution for caution in seen if caution.check != "resolution" or not kept]
    for warning in (str(caution) for caution in cautions):
        if warning not in told:
            warn(warning)
    return tuple(cautions)
