"""The whole story of a bake: open, plan, check what would be lost, execute, complete, commit.

Each step takes the result of the one before. What a bake is told and what it tells come below the story.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

from lorabake import arguments
from lorabake.errors import ArgumentError
from lorabake.execution import Executed, execute
from lorabake.interrupts import held
from lorabake.machine import check_room_for, default_workers, versions, worded
from lorabake.planning import Plan
from lorabake.planning import plan as plan_of
from lorabake.planning.cautions import Caution, cautions_of, cautions_of_recipe, check_survival
from lorabake.planning.checks import within_folder
from lorabake.planning.summary import line_of, tables_of
from lorabake.progress import NotebookBar, unseen
from lorabake.recipe.given import EXAMPLE, WHOLE, Given, OutputGiven, RecipeKeys, recipe_and_path, takes_a_recipe
from lorabake.sources import resolve
from lorabake.tensors.dtypes import DTYPES
from lorabake.visible import at_a_glance, counted_as, short_repr, size_of
from lorabake.writing.inputs import Inputs, check_inputs
from lorabake.writing.together import Outputs

if TYPE_CHECKING:
    from lorabake.artifacts.current import Current, Watches


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
        options = _run_options(options)
        planned = plan(recipe, output, **keys)
    (result,) = bake_together((planned,), options)
    return result


@arguments.well_called('bake_together(["one.yaml", "two.yaml"])')
def bake_together(recipes: Sequence[Given | Plan], options: RunOptions | None = None) -> tuple[BakeResult, ...]:
    """Bake recipes, or plans made of them, on one base side by side; return what was written, in their order.

    A tensor of the base from which several of them compute is read once, and the bytes are those of single bakes.
    What stops one stops all; each target is what it was, or complete. `RunOptions.done` is called once all are.
    """
    options = _run_options(options)
    if not isinstance(recipes, (list, tuple)):
        raise ArgumentError(
            f"bake_together takes a list of recipes, not {at_a_glance(recipes)}", "For one recipe: bake(recipe)."
        )
    if not recipes:
        return ()
    from lorabake.artifacts.current import Current, Watches, find_current  # a plan does without
    from lorabake.artifacts.watch import Watch

    began = time.perf_counter()
    with worded(), NotebookBar(shown=options.bar and options.progress is unseen) as bar:
        plans = [recipe if isinstance(recipe, Plan) else plan(recipe) for recipe in recipes]
        watches = [Watch.of(planned, locked=options.locked) for planned in plans]
        standing = [None if options.force else find_current(watch, options.device) for watch in watches]
        pairs = [*zip(watches, standing, strict=True)]
        due = Watches([(watch, state) for watch, state in pairs if not isinstance(state, Current)])
        baked = iter(_baked(due, options, bar, began) if due.plans else ())
        if not due.plans:
            options.done()
    seconds = time.perf_counter() - began
    return tuple(
        BakeResult.standing(watch.plan, state, seconds) if isinstance(state, Current) else next(baked)
        for watch, state in pairs
    )


def _baked(watches: Watches, options: RunOptions, bar: NotebookBar, began: float) -> tuple[BakeResult, ...]:
    """Bake plans whose outputs are not there yet."""
    plans, started = watches.plans, time.time_ns()
    if any(planned.steps for planned in plans):
        check_room_for("torch", options.workers)
    told = [_warn_of_recipe(planned, options.warn) for planned in plans]
    kept = [_check_survival(planned, options.warn) for planned in plans]
    with (
        Inputs(*plans, watched=watches.paths) as inputs,
        Outputs(plans, inputs, overwrite=options.overwrite, fsync=options.fsync) as outputs,
    ):
        bar.begin("baking", sum(planned.copied_bytes + planned.baked_bytes for planned in plans))
        executed = execute(
            plans,
            inputs,
            [output.weights for output in outputs],
            device=options.device,
            workers=options.workers,
            progress=bar.advance if options.progress is unseen else options.progress,
            warn=options.warn,
            watched=watches.paths,
            digested=watches.check,
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
    outputs.tell_left(options.warn)
    watches.keep(executed, inputs.seen, started, options.warn)
    ended = time.perf_counter()
    seconds, sync_seconds = ended - began, ended - computed_at
    return tuple(
        BakeResult.of(*found, seconds=seconds, sync_seconds=sync_seconds)
        for found in zip(executed, kept, cautions, strict=True)
    )


@arguments.well_made
@dataclass(frozen=True, slots=True)
class RunOptions:
    """Say how to bake. Only the device influences bytes: the last bits differ between device classes.

    `device` is torch's name for one, or "auto": the accelerator that torch has, or else the CPU. Without it counts
    LORABAKE_DEVICE in the environment, and without that "auto". `overwrite` lets a bake replace a target that holds
    something else; without `fsync` it does not wait for the disk. With `force`, it bakes even if the output is there
    already, of this recipe and these inputs. With `locked`, the recipe's lock has to be there and to fit, and every
    input is digested while it streams.

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
                for name in ("overwrite", "fsync", "force", "locked", "bar")
            },
            "progress": arguments.called(self.progress, "progress", "lambda count: None"),
            "warn": arguments.called(self.warn, "warn", "print"),
            "done": arguments.called(self.done, "done", "lambda: None"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class BakeResult:
    """Tell what was written and how long it took.

    `data_sha256` maps each file to the SHA-256 of its tensor data (empty without `output.hash`); `input_sha256`
    each digested input to its own. `stages` are the workers' seconds by stage, `peak_memory` bytes of anonymous
    memory, or None where the system does not tell. `survival` estimates the share of each LoRA's change that the
    output's resolution keeps, by the LoRA's number; `cautions` tell whose change is none, gets lost, or is absurd, as
    `warn` was told. `computed` maps each device class that computed to the keys of its tensors, in the plan's order;
    `left_to_cpu` are those that an accelerator could not hold or compute. `is_up_to_date` tells that the output was
    there already, and nothing was done.
    """

    plan: Plan
    path: Path
    size: int
    data_sha256: dict[str, str]
    input_sha256: dict[str, str]
    seconds: float
    sync_seconds: float
    stages: dict[str, float]
    peak_memory: int | None
    survival: dict[int, float]
    computed: dict[str, tuple[str, ...]]
    device: str
    left_to_cpu: tuple[str, ...]
    cautions: tuple[Caution, ...] = ()
    is_up_to_date: bool = False

    @classmethod
    def of(
        cls,
        executed: Executed,
        kept: dict[int, float],
        cautions: tuple[Caution, ...],
        *,
        seconds: float,
        sync_seconds: float,
    ) -> Self:
        """Sum up one bake; `kept` is its survival, where that was estimated before."""
        plan = executed.plan
        return cls(
            plan=plan,
            path=plan.path,
            size=plan.size,
            data_sha256={
                file.name: sha256 for file, sha256 in zip(plan.files, executed.hashes, strict=True) if sha256
            },
            input_sha256=executed.input_sha256,
            seconds=seconds,
            sync_seconds=sync_seconds,
            stages=dict(executed.stages),
            peak_memory=executed.peak_memory,
            survival=kept or executed.survival,
            computed=dict(executed.computed),
            device=executed.device,
            left_to_cpu=executed.left_to_cpu,
            cautions=cautions,
        )

    @classmethod
    def standing(cls, plan: Plan, current: Current, seconds: float) -> Self:
        """Sum up a bake whose output was there already."""
        sizes = (plan.path, plan.size, dict(current.data_sha256), dict(current.input_sha256), seconds, 0.0)
        return cls(plan, *sizes, {}, None, {}, {}, current.device, (), is_up_to_date=True)

    def __repr__(self) -> str:
        if self.is_up_to_date:
            return f"<BakeResult {line_of(self.plan)}: up to date>"
        took = f"{self.seconds:.1f} s on {self.device}"
        warned = f"; {counted_as(len(self.cautions), 'warning')}" if self.cautions else ""
        return f"<BakeResult {line_of(self.plan)} in {took}{warned}>"

    def _repr_html_(self) -> str:
        from lorabake.notebook import Table, card

        digests = [(name, sha256) for name, sha256 in self.data_sha256.items()]
        warnings = [(caution.lora, caution.note) for caution in self.cautions]
        tables = [
            *tables_of(self.plan, self.survival),
            Table("Warnings", ("LoRA", "warning"), warnings),
            Table("SHA-256 of the tensor data", ("file", "SHA-256"), digests, is_folded=True),
        ]
        return card("Baked", f"{self.path}: {size_of(self.size)} in {self.seconds:.1f} s on {self.device}", tables)

    @property
    def bottleneck(self) -> str:
        """Name the stage that took the workers longest."""
        return max(self.stages, key=lambda stage: self.stages[stage], default="copy")

    def report(self) -> dict[str, object]:
        """Put the result in figures, for machines, as `lorabake schema bake` describes them."""
        from lorabake.documents import document
        from lorabake.documents.bake import BakeDocument, DataDigest, FileDigest, StageSeconds
        from lorabake.documents.records import PackageVersion
        from lorabake.planning.record import record_of, survival_of, told_path, warnings_of

        record = BakeDocument(
            path=told_path(self.plan, self.path),
            bytes=self.size,
            data_sha256=tuple(DataDigest(file, sha256) for file, sha256 in self.data_sha256.items()),
            inputs=tuple(
                FileDigest(told_path(self.plan, Path(path)), sha256) for path, sha256 in self.input_sha256.items()
            ),
            versions=tuple(PackageVersion(*each) for each in versions().items()),
            up_to_date=self.is_up_to_date,
            device=self.device,
            left_to_cpu=self.left_to_cpu,
            seconds=round(self.seconds, 3),
            sync_seconds=round(self.sync_seconds, 3),
            stages=tuple(StageSeconds(stage, round(seconds, 3)) for stage, seconds in sorted(self.stages.items())),
            bottleneck=self.bottleneck,
            peak_memory_bytes=self.peak_memory,
            survival=survival_of(self.plan, self.survival),
            warnings=warnings_of(self.cautions),
            plan=record_of(self.plan),
        )
        return document("bake", record)


def _run_options(options: RunOptions | None) -> RunOptions:
    """Return the options, or those that count without any; raise ArgumentError for anything else."""
    if options is None or isinstance(options, RunOptions):
        return options or RunOptions()
    is_lora = isinstance(options, (str, list, dict, os.PathLike))
    advice = f"Write {EXAMPLE}." if is_lora else "Write options=RunOptions(workers=2)."
    raise ArgumentError(f"options must be RunOptions(…), not {at_a_glance(options)}", advice)


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
