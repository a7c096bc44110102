"""`lorabake bake`: do it, with a progress bar, and say in one line how it went."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import click

from lorabake.baking import RunOptions
from lorabake.baking import bake as run_bake
from lorabake.changes import FADES
from lorabake.cli import CONTEXT
from lorabake.cli.show import ledger_lines, rate_of, shown, size_of, survives
from lorabake.errors import SurroundingsError, TargetError
from lorabake.planning import Plan, default_workers
from lorabake.planning import plan as make_plan
from lorabake.recipe import load_recipe

ALL = 0.9995
"""Share of a change from which on nothing is said to be lost."""


@click.command(context_settings=CONTEXT)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here instead of the recipe's path.")
@click.option(
    "--device",
    help="Compute on this device: auto, cpu, cuda, cuda:1, xpu, mps.  [default: $LORABAKE_DEVICE, else auto: an "
    "accelerator where there is one, else the CPU]",
)
@click.option("--workers", type=click.IntRange(1, 64), help="Threads that compute.  [default: the cores, up to 8]")
@click.option("--overwrite", is_flag=True, help="Replace a target that holds something else.")
@click.option(
    "--fsync/--no-fsync", default=True, help="Whether to wait until the disk has everything.  [default: yes]"
)
@click.option("--report", type=click.Path(path_type=Path), help="Write what happened to this JSON file.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
@click.option("--json", "as_json", is_flag=True, help="Print what happened as JSON.")
def bake(
    recipe: Path,
    output: Path | None,
    device: str | None,
    workers: int | None,
    overwrite: bool,
    fsync: bool,
    report: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Bake RECIPE into a new checkpoint.

    The output is written beside its target and renamed when it is complete: whatever stops a bake, an older
    file of that name stays as it was. The same recipe and inputs give the same bytes on the same class of device.
    """
    plan = make_plan(load_recipe(recipe), output)
    if report is not None:
        _check_report(report, plan)
    talks = not (quiet or as_json)
    for ledger in plan.ledgers if talks else ():
        for line in ledger_lines(ledger):
            click.echo(line, err=True)
    for note in plan.notes if not quiet else ():
        click.echo(f"note: {note}", err=True)
    bar = None
    if talks and sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=plan.copied_bytes + plan.baked_bytes, unit="B", unit_scale=True, desc="baking", leave=False)
    lock = threading.Lock()

    def advance(count: int) -> None:
        if bar is not None:
            with lock:
                bar.update(count)

    options = RunOptions(
        device=device,
        workers=workers or default_workers(),
        overwrite=overwrite,
        fsync=fsync,
        progress=advance,
        warn=lambda message: click.echo(f"warning: {message}", err=True),
    )
    try:
        result = run_bake(plan, options)
    finally:
        if bar is not None:
            bar.close()
    text = json.dumps(result.report(), indent=2, ensure_ascii=False)
    if report is not None:
        try:
            report.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise SurroundingsError(
                f"{report}: the report cannot be written: {error.strerror}\n{result.path} is complete."
            ) from None
    if as_json:
        click.echo(text)
    if talks:
        for lora, share in result.survival.items():
            if FADES <= share < ALL:  # less was warned of
                click.echo(survives(plan.sources.loras[lora].name, share), err=True)
        synced = f" ({result.sync_seconds:.1f} s of it waiting for the disk)" if fsync else ""
        memory = f", peak memory {result.peak_memory / 2**20:.0f} MiB" if result.peak_memory else ""
        computed = f", computed on {result.device}" if result.computed else ""
        click.echo(
            f"{shown(result.path)}: {size_of(result.size)} in {result.seconds:.1f} s{synced}, "
            f"{rate_of(result.size, result.seconds)}, bottleneck {result.bottleneck}{memory}{computed}"
        )


def _check_report(report: Path, plan: Plan) -> None:
    """Refuse a report that would overwrite the checkpoint, or something that it is made of."""
    inputs = [header.path for checkpoint, _ in plan.sources.inputs for header in checkpoint.headers]
    beside = [each.path for each in plan.embeddings]
    taken = [path.resolve() for path in (plan.path, *beside, plan.sources.recipe.file, *inputs) if path is not None]
    place = report.resolve()
    if any(path in (place, *place.parents) for path in taken):
        raise TargetError(f"{report}: is the output, or an input, of this bake; choose another file for the report")
