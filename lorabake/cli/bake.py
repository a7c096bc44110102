"""`lorabake bake`: Bake a recipe into a new checkpoint.

Show a progress bar, and say in one line how it went.
"""

from __future__ import annotations

from pathlib import Path

import click

from lorabake.artifacts.watch import has_lock
from lorabake.baking import bake as run_bake
from lorabake.baking import plan as make_plan
from lorabake.cli import CONTEXT, example, interruption
from lorabake.cli.accounts import Accounts
from lorabake.cli.devices import complete_device
from lorabake.cli.messages import messages
from lorabake.cli.places import check_apart, check_writable, taken_by
from lorabake.cli.progress import Bar
from lorabake.cli.recipe_options import recipe_options, save_option
from lorabake.cli.saving import check_saved, save_recipe
from lorabake.cli.show import LABEL, ledger_lines, new_folder, rate_of, shown, survives
from lorabake.cli.terminal import echo, echo_json
from lorabake.errors import SurroundingsError
from lorabake.machine import default_workers, in_ci
from lorabake.options import RunOptions
from lorabake.planning.cautions import FADES
from lorabake.planning.links import linked
from lorabake.recipe.options import Options
from lorabake.visible import size_of, visible_json
from lorabake.writing.partial import partial_of
from lorabake.writing.whole import write_whole

MOST = {"copy": "copying", "read": "reading", "compute": "computing", "write": "writing"}
"""What took the workers most of their time, in words."""

ALL = 0.9995
"""Share of a change from which on nothing is said to be lost."""


@click.command(
    context_settings=CONTEXT,
    epilog=example(
        "bake recipe.yaml",
        "bake recipe.yaml --set loras.0.strength=0.6 -o weaker.safetensors",
        "bake --base base.safetensors --lora style.safetensors=0.8 -o baked.safetensors",
    ),
)
@recipe_options(one=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here instead of the recipe's path.")
@save_option
@click.option(
    "--device",
    shell_complete=complete_device,
    help="Compute on this device: auto, cpu, cuda, cuda:1, xpu, mps. auto takes an accelerator if there is one, else "
    "the CPU.  [default: $LORABAKE_DEVICE, else auto]",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), help="How many threads compute.  [default: the cores, up to 8]"
)
@click.option("--overwrite", is_flag=True, help="Replace the target even if it holds something else.")
@click.option(
    "--force", is_flag=True, help="Bake even if the output is there already, of this recipe and these inputs."
)
@click.option(
    "--fsync/--no-fsync", default=True, help="Whether to wait until the disk has everything.  [default: yes]"
)
@click.option(
    "--link", is_flag=True, help="Hard-link files of a folder that stay as they are to the base's own; no copies."
)
@click.option(
    "--locked/--no-locked",
    default=None,
    help="Whether the recipe's lock has to be there and to fit, each input digested.  [default: in CI, if there is "
    "one]",
)
@click.option("--frozen", is_flag=True, help="Take the commits of hf:// inputs from the lock, which has to be there.")
@click.option("--report", type=click.Path(path_type=Path), help="Write what happened into this JSON file.")
@click.option("--provenance", is_flag=True, help="State how it was made: write NAME.intoto.json beside the output.")
@click.option("--card", is_flag=True, help="Write a model card: README.md in a folder, NAME.md beside a file.")
@click.option(
    "--date", metavar="DATE", help="Write this date into the statement, such as 2026-11-29.  [default: no date]"
)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and warnings.")
@click.option("--json", "as_json", is_flag=True, help="Print what happened as JSON.")
def bake(
    said: Options,
    output: Path | None,
    device: str | None,
    workers: int | None,
    overwrite: bool,
    force: bool,
    fsync: bool,
    link: bool,
    locked: bool | None,
    frozen: bool,
    report: Path | None,
    provenance: bool,
    card: bool,
    date: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Bake RECIPE into a new checkpoint.

    The output gets its name when it is complete. If something stops the bake, an older file of that name stays as it
    was. The same recipe and inputs give the same bytes on the same class of device (CPU, CUDA and so on).

    Options can take the place of RECIPE. Paths in options start from the current folder.
    """
    recipe = said.recipe()
    is_locked = in_ci() and has_lock(recipe) if locked is None else locked
    if is_locked and locked is None:
        echo("note: CI=true, and the recipe has a lock: baked --locked (--no-locked turns it off)", err=True)
    if is_locked or frozen:
        from lorabake.artifacts.locking import frozen as frozen_recipe  # most bakes have no lock

        recipe = frozen_recipe(recipe)
    plan = make_plan(recipe, output)
    plan = linked(plan) if link else plan
    check_saved(said.save, plan, report)
    if report is not None:
        check_writable(report, "report")
        check_apart([report], "report", taken_by(plan), [plan.path, partial_of(plan.path)])
    about = Accounts.asked(plan, provenance=provenance, card=card, date=date)
    talks = not (quiet or as_json)
    for number in range(len(plan.ledgers) if talks else 0):
        for line in ledger_lines(plan, number):
            echo(line, err=True)
    for note in (*plan.notes, *new_folder(plan, output)) if not quiet else ():
        echo(f"note: {note}", err=True)
    bar = Bar(shown=talks)
    bar.begin("baking", plan.copied_bytes + plan.baked_bytes)
    options = RunOptions(
        device=device,
        workers=workers or default_workers(),
        overwrite=overwrite,
        fsync=fsync,
        force=force,
        locked=is_locked,
        link=link,
        progress=bar.advance,
        warn=messages.warning,
        done=interruption.ignore,
    )
    try:
        result = run_bake(plan, options)
    finally:
        bar.close()
    save_recipe(said.save, plan)
    if report is not None:
        try:
            write_whole(report, f"{visible_json(result.report())}\n".encode())
        except OSError as error:
            raise SurroundingsError(
                f"{report}: the report cannot be written: {error.strerror}", f"{result.path} is complete."
            ) from None
    written = about.write(result.plan, talks=talks)
    if as_json:
        echo_json(result.report())
    if talks and result.is_up_to_date:
        place = f"{'output':<{LABEL}}{shown(result.path)}"
        echo(f"{place}: up to date, made by this recipe of these inputs; --force bakes it all the same")
    elif talks:
        for lora, share in result.survival.items():
            if FADES <= share < ALL:  # less was warned of
                echo(f"{f'lora {lora + 1}':<{LABEL}}{survives(plan.sources.loras[lora].name, share)}", err=True)
        synced = f" ({result.sync_seconds:.1f} s of it waiting for the disk)" if fsync else ""
        memory = f", peak memory {result.peak_memory / 2**20:.0f} MiB" if result.peak_memory else ""
        computed = f", computed on {result.device}" if result.computed else ""
        echo(
            f"{'output':<{LABEL}}{shown(result.path)}: {size_of(result.size)} in {result.seconds:.1f} s{synced}, "
            f"{rate_of(result.size, result.seconds)}, mostly {MOST[result.bottleneck]}{memory}{computed}"
        )
    for label, path in written.items() if talks else ():
        echo(f"{label:<{LABEL}}{shown(path)}", err=True)
