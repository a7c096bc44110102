"""Make a recipe of a command line's options: of a file, or of `--base` and `--lora`, with what `--set` changes.

The options become values like those of a file, and have the options as their spots. So the recipe's own checks and
messages serve them. Paths in options start from the current folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from lorabake.errors import RecipeError
from lorabake.paths import expanded
from lorabake.recipe import Recipe, only, recipe_text, recipes_of, several
from lorabake.recipe.changes import moved, moved_paths, places_in, read_change, with_changes, with_value
from lorabake.recipe.values import Place, Values, read_values, scalar
from lorabake.recipe.words import Fault, Spot, quoted

OUTPUT: Place = ("output", "path")
NOWHERE = Spot("")
EXAMPLE = "--base model.safetensors --lora style.safetensors=0.8 -o baked.safetensors"


@dataclass(frozen=True, slots=True)
class Options:
    """Hold what a command line says of a recipe, as it was written.

    Either `file`, or `bases` (exactly one) and `loras`, each PATH, PATH=STRENGTH or PATH=COMPONENT:STRENGTH,…
    `output` takes the place of the recipe's. `save` is the file that will hold the recipe: its folder is the one
    from which the paths of the recipe start. `only` are patterns for names of outputs, where a matrix has several.
    """

    file: Path | None = None
    bases: tuple[str, ...] = ()
    loras: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    output: Path | None = None
    save: Path | None = None
    only: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Tell whether neither a file nor a base or LoRA was given."""
        return self.file is None and not self.bases and not self.loras

    def recipe(self) -> Recipe:
        """Make the one recipe that is meant; raise RecipeError where a matrix has several."""
        recipes = self.recipes()
        if len(recipes) > 1:
            raise RecipeError(*several(str(self.file), recipes))
        return recipes[0]

    def recipes(self) -> tuple[Recipe, ...]:
        """Make the recipes of all outputs; raise RecipeError with every fault and the option that it is in.

        `only` chooses among them.
        """
        here = Path.cwd()
        _check_texts(self)
        if self.file is None:
            text, file, folder, values = None, None, here, _values(self)
        elif self.bases or self.loras:
            raise RecipeError(*_both(self, self.file))
        else:
            path = Path(expanded(str(self.file)))
            text, file = recipe_text(path), path.absolute()
            folder, values = file.parent, read_values(text, str(path))
        values = with_changes(values, map(read_change, self.changes), here, folder)
        if self.file is None:
            _check_bakes(values)
        output = values.spots.get(OUTPUT, NOWHERE)
        if self.output is not None and output.name.startswith("--set "):
            raise RecipeError(Fault(output, "-o says where the output goes, too: give one of them").line)
        if self.save is not None:
            recipes_of(values, folder, file, text)  # tells faults before paths are moved
            values, folder = _for_another_folder(self, values, folder), self.save.absolute().parent
        if self.changes or self.save is not None:
            text = None
        return only(recipes_of(values, folder, file, text), self.only)


def _check_texts(options: Options) -> None:
    """Raise RecipeError for an option without its value, or with one that no recipe could hold."""
    named = {"--base": options.bases, "--lora": options.loras, "--set": options.changes}
    if options.file is None or options.save is not None:
        named["-o"] = (str(options.output or ""),)
    for name, texts in named.items():
        for text in texts:
            if text.startswith("-"):
                value = {"--lora": "FILE=0.8", "--set": "KEY=VALUE"}.get(name, "FILE")
                message = f"needs a value behind it, and {quoted(text)} follows"
                advice = f"Write {name} {value}. If a file's name begins with '-', write ./{text}"
                raise RecipeError(f"{name} {message}", advice)
            if re.search("[\ud800-\udfff]", text):  # Python's marks for bytes that are not UTF-8
                raise RecipeError(Fault(Spot(name), f"{quoted(text)} is not UTF-8: rename the file").line)


def _check_bakes(values: Values) -> None:
    """Raise RecipeError for options that name neither a LoRA nor what else can be baked."""
    data = values.data
    others = (("vae",), ("output", "dtype"), ("output", "layout"), ("loras", 0))
    if isinstance(data, Mapping) and data.get("loras") == () and values.spots.keys().isdisjoint(others):
        advice = "Write --lora FILE=0.8, or --set vae=FILE, or --set output.dtype=float16"
        raise RecipeError("--lora is missing: nothing to bake", advice)


def _both(options: Options, file: Path) -> tuple[str, str]:
    """Say what is wrong where a recipe's file and the options that take its place were given."""
    alone = f"{file}: stands without an option"
    if options.loras and options.loras[-1].endswith(","):
        return alone, f"Write no space after the comma: --lora {options.loras[-1]}{file}"
    if isinstance(scalar(str(file)), (int, float)) and options.loras:
        return alone, f"A strength stands after its LoRA and '=': --lora {options.loras[-1].partition('=')[0]}={file}"
    if file.suffix.lower() not in (".yaml", ".yml") and not options.bases:
        return alone, f"If it is the checkpoint, write --base {file}"
    if file.suffix.lower() not in (".yaml", ".yml"):
        return alone, f"If it is a LoRA, write --lora {file}"
    first = f"{file}: is given as the recipe, and so are --base and --lora: give either the file or these options"
    change = f"base={options.bases[0]}" if options.bases else "loras.0.strength=0.6"
    return first, f"To change a value of the file's recipe: --set {change}"


def _values(options: Options) -> Values:
    """Make values of `--base`, `--lora` and `-o`."""
    if len(options.bases) != 1:
        raise RecipeError(*_not_one_base(options.bases))
    if options.output is None and not any(change.startswith("output.path=") for change in options.changes):
        raise RecipeError("-o is missing: name the baked checkpoint, as in -o baked.safetensors")
    loras, faults = [], []
    spots: dict[Place, Spot] = {
        (): Spot("the options"),
        ("base",): Spot("--base"),
        ("loras",): Spot("--lora"),
        ("output",): Spot("-o"),
        OUTPUT: Spot("-o"),
    }
    for number, text in enumerate(options.loras):
        spot = Spot(f"--lora {number + 1}")
        try:
            lora = lora_entry(text)
        except ValueError as error:
            lora = "lora"  # no fault but this one
            faults.append(Fault(spot, str(error)))
        loras.append(lora)
        spots |= {("loras", number, *place): spot for place in ((), *places_in(lora))}
    output = {} if options.output is None else {"path": str(options.output)}
    if not output:
        del spots[OUTPUT]
    data = {"version": 1, "base": options.bases[0], "loras": tuple(loras), "output": output}
    return Values(data, spots, spots, tuple(faults))


def lora_entry(text: str) -> object:
    """Read an entry of loras: PATH, PATH=STRENGTH or PATH=COMPONENT:STRENGTH,…; or raise ValueError."""
    if tag := re.fullmatch(r"\s*<(?:lora|lyco):([^:>]+)(?::([-+]?[\d.]+))?[^>]*>\s*", text):
        raise ValueError(
            f"{quoted(text)} is the tag of a LoRA in a prompt: write --lora {tag[1]}.safetensors={tag[2] or 1}"
        )
    path, equals, strength = text.rpartition("=")
    if "://" in text and "?" in text:  # an address of the web, with '=' of its own
        return text
    if not equals:
        if "://" in text:
            return text
        if wrong := re.fullmatch(r"(.+):([-+]?[0-9.]+)", text):
            raise ValueError(f"a strength stands after '=': --lora {wrong[1]}={wrong[2]}")
        return text
    if not path.strip():
        raise ValueError(f"the path before '=' is missing: write --lora FILE={strength or 1}")
    if not strength.strip():
        raise ValueError(f"the strength after '=' is missing: write --lora {path}=0.8")
    if empty := re.search(r"(?:^|,)(\w+):(?=,|$)", strength):
        filled = re.sub(r"(^|,)(\w+):(?=,|$)", r"\1\2:0.5", strength)
        raise ValueError(f"{empty[1]} has no number: write --lora {path}={filled}")
    if re.fullmatch(r"[-+]?\d*,\d+", strength):
        point = strength.replace(",", ".")
        raise ValueError(f"{quoted(strength)} is no number: write --lora {path}={point}, with a point")
    pairs = [tuple(part.strip() for part in pair.rpartition(":")) for pair in strength.split(",")]
    numbers = [scalar(number) for _, _, number in pairs]
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) for number in numbers):
        message = f"{quoted(strength)} is no strength: write PATH=0.8 or PATH=unet:0.5,text_encoder:0.2"
        hint = f". If '=' belongs to the path, write the strength after it: {text}=1"
        raise ValueError(message + hint if PurePath(strength).suffix else message)
    names = [name for name, _, _ in pairs]
    if names == [""]:
        return {"path": path, "strength": numbers[0]}
    if not all(names):
        raise ValueError(
            f"{quoted(strength)}: give one number, such as 0.8, or one for each component: unet:0.5,text_encoder:0.2"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{quoted(strength)} has a component twice: give each one number")
    return {"path": path, "strength": dict(zip(names, numbers, strict=True))}


def _not_one_base(bases: tuple[str, ...]) -> tuple[str, str]:
    told = (
        f"is given {'twice' if len(bases) == 2 else f'{len(bases)} times'}: a recipe has one base"
        if bases
        else "is missing"
    )
    return f"--base {told}", f"Name the checkpoint that the LoRAs are baked into: {EXAMPLE}"


def _for_another_folder(options: Options, values: Values, folder: Path) -> Values:
    """Let all paths start from the folder of the file that will hold the recipe."""
    assert options.save is not None
    if options.output is not None:
        values = with_value(values, OUTPUT, moved(str(options.output), Path.cwd(), folder), Spot("-o"))
    data = moved_paths(values.data, (), folder, options.save.absolute().parent)
    return Values(data, values.keys, values.spots)
