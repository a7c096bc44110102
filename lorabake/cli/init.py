"""`lorabake init`: Write a recipe from options, a prompt or a picture."""

from __future__ import annotations

from pathlib import Path

import click

from lorabake.cli import CONTEXT, example
from lorabake.cli.places import check_writable
from lorabake.cli.terminal import echo
from lorabake.errors import RecipeError, SurroundingsError, TargetError
from lorabake.importing.wanted import Wanted
from lorabake.visible import counted_as
from lorabake.writing.whole import write_whole

FILE = click.Path(path_type=Path)


@click.command(
    context_settings=CONTEXT,
    epilog=example(
        "init portrait.yaml --base base.safetensors --lora style.safetensors=0.8",
        "init portrait.yaml --base base.safetensors --prompt '<lora:style:0.8>' --lora-dir models/Lora",
        "init portrait.yaml --from picture.png --base-dir models/Stable-diffusion --lora-dir models/Lora",
    ),
)
@click.argument("recipe", type=FILE, default=Path("recipe.yaml"), metavar="[RECIPE]")
@click.option("--base", type=click.Path(), metavar="PATH", help="The checkpoint that LoRAs are baked into.")
@click.option(
    "--lora",
    "loras",
    multiple=True,
    type=click.Path(),
    metavar="PATH[=STRENGTH]",
    help="A LoRA and its strength, as in a.safetensors=0.8 or a.safetensors=unet:0.5,text_encoder:0.2. Repeatable.",
)
@click.option("--prompt", help="A prompt with LoRAs as AUTOMATIC1111 writes them: '<lora:style:0.5:0.7:lbw=OUTALL>'.")
@click.option("--from", "picture", type=FILE, metavar="PICTURE", help="A PNG from AUTOMATIC1111, Forge or ComfyUI.")
@click.option(
    "--lora-dir", "lora_folders", multiple=True, type=FILE, help="Where the files of named LoRAs are. Repeatable."
)
@click.option(
    "--base-dir", "base_folders", multiple=True, type=FILE, help="Where the picture's checkpoint is. Repeatable."
)
@click.option("--presets", type=FILE, metavar="FILE", help="Your presets of block weights: lbwpresets.txt.")
@click.option("-o", "--output", type=click.Path(), help="The checkpoint to bake.  [default: named by what is in it]")
def init(
    recipe: Path,
    base: str | None,
    loras: tuple[str, ...],
    prompt: str | None,
    picture: Path | None,
    lora_folders: tuple[Path, ...],
    base_folders: tuple[Path, ...],
    presets: Path | None,
    output: str | None,
) -> None:
    """Write a commented RECIPE (recipe.yaml) from a base and LoRAs, a prompt, or a picture.

    LoRAs in a prompt or a picture are looked up by name below --lora-dir. RECIPE must be new.
    """
    from lorabake.importing.drafting import Given, draft

    check_writable(recipe, "recipe")
    if recipe.exists():
        raise TargetError(f"{recipe}: is there already", "Choose another name, or remove it first.")
    if prompt is not None and picture is not None:
        raise RecipeError("--prompt and --from were given", "Give one of them: a picture has its prompt in it.")
    drafted = draft(Given(base, loras, _wanted(prompt, picture, presets), lora_folders, base_folders, output), recipe)
    try:
        write_whole(recipe, drafted.text.encode())
    except OSError as error:
        raise SurroundingsError(f"{recipe}: the recipe cannot be written: {error.strerror}") from None
    for note in drafted.notes:
        echo(f"note      {note}")
    echo(f"wrote     {recipe}: {counted_as(drafted.loras, 'LoRA')} into {drafted.base}")
    echo(f"next      lorabake plan {recipe}")


def _wanted(prompt: str | None, picture: Path | None, presets: Path | None) -> Wanted:
    """Read what a prompt or a picture says."""
    from lorabake.importing.block_weights import PRESETS
    from lorabake.importing.pictures import read_picture
    from lorabake.importing.prompts import calls_in, read_presets
    from lorabake.recipe import recipe_text

    known = PRESETS if presets is None else read_presets(recipe_text(presets), str(presets))
    if picture is not None:
        return read_picture(picture, known)
    if prompt is None:
        return Wanted()
    text, calls = calls_in(prompt, known)
    if not calls:
        raise RecipeError("--prompt: there is no LoRA in it", "Write one as in '<lora:style:0.8>'.")
    return Wanted(calls=calls, prompt=text)
