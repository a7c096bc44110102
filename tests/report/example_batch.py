"""Several outputs, verified, to look at and to test with: a sweep, sixty of three axes, some that failed, texts.

`python -m tests.report.example_batch FOLDER` writes their reports below FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from lorabake import report
from lorabake.errors import FileError
from lorabake.recipe import Recipe, recipes_of
from lorabake.recipe.values import read_values
from lorabake.report.pictures import png
from lorabake.verification.findings import Finding, Status, Verdict
from lorabake.verification.many import KeptSample, SmallPicture, VerifiedBatch, VerifiedOutput
from tests.report import example

LIKE = Finding("samples.likeness", Status.PASS, "a knight in the snow", "latents 0.0007", "0.0016", "at the floor")
UNLIKE = replace(LIKE, status=Status.FAIL, note="not what base and LoRAs make at run time")
PROMPTS = ("a knight in the snow", "a red house by the lake, ink drawing")
HOW = "scheduler DDIM, steps 20, size 64 × 64, guidance 5"
BASE = "models/base.safetensors"


def recipes(axes: Mapping[str, list[str]], file: str = "sweep.yaml", name: str = "") -> tuple[Recipe, ...]:
    """Make the recipes of a matrix."""
    told = "".join(f"  {axis}: [{', '.join(values)}]\n" for axis, values in axes.items())
    words = name or "-".join(f"${{{axis}}}" for axis in axes)
    text = f"version: 1\n{f'matrix:{chr(10)}{told}' if axes else ''}base: {BASE}\nloras: [ink.safetensors]\n"
    folder = Path("/nowhere")
    return recipes_of(
        read_values(f"{text}output: {{path: '{words}.safetensors'}}\n", file), folder, folder / file, text
    )


@cache
def kept(model: str, prompt: str, hue: float, ink: float) -> KeptSample:
    """Draw a small picture."""
    pixels = example.drawing(hue, ink)
    return KeptSample(model, prompt, 7, HOW, SmallPicture(png(pixels), "png", pixels.shape[1], pixels.shape[0]))


def verified(recipe: Recipe, prompts: int = 1, **others: object) -> VerifiedOutput:
    """Verify one output that is right; its values on the axes change what it draws."""
    mixed = sum(sum(map(ord, value)) * (at + 1) for at, value in enumerate(recipe.choices.values()))
    ink = next((float(value) for axis, value in recipe.choices.items() if axis == "strength"), 0.6)
    samples = tuple(kept("baked", PROMPTS[at], at * 1.3 + mixed % 7, ink) for at in range(prompts))
    output = VerifiedOutput(
        recipe.name,
        recipe,
        Verdict.VERIFIED,
        0,
        (*example.PASSED, LIKE),
        {"structure": 0.04, "weights": 0.3, "samples": 4.0},
        samples,
        tuple(range(prompts)),
        f"outputs/{recipe.name}/index.html",
    )
    return replace(output, **others)  # type: ignore[arg-type]


def batch(outputs: tuple[VerifiedOutput, ...], prompts: int = 1) -> VerifiedBatch:
    """Put outputs together, with what their base drew."""
    bases = tuple(kept(BASE, PROMPTS[at], at * 1.3, 0) for at in range(prompts))
    return VerifiedBatch(outputs, bases, 42.0, example.ENVIRONMENT)


def sweep() -> VerifiedBatch:
    """Verify five strengths of two sets, all of them right."""
    axes = {"strength": ["0.2", "0.4", "0.6", "0.8", "1.0"], "set": ["style", "both"]}
    return batch(tuple(map(verified, recipes(axes))))


def wrong(output: VerifiedOutput) -> VerifiedOutput:
    """Let an output differ."""
    return replace(
        output, verdict=Verdict.MISMATCH, exit_code=1, findings=(*example.PASSED[:-2], example.WRONG, UNLIKE)
    )


def missing(output: VerifiedOutput) -> VerifiedOutput:
    """Let an output not be there."""
    error = FileError(f"{output.name}.safetensors: no such file", "Bake it first.")
    return VerifiedOutput.failed(output.name, error, output.recipe)


def sixty() -> VerifiedBatch:
    """Verify sixty outputs of three axes and two prompts, some of them wrong or missing."""
    axes = {
        "strength": ["0.2", "0.4", "0.6", "0.8", "1.0", "1.2"],
        "style": ["ink", "oil on canvas with a rather long name", "neon", "pastel", "woodcut"],
        "dtype": ["float16", "bfloat16"],
    }
    made = [verified(recipe, 2) for recipe in recipes(axes)]
    made[7], made[31], made[32] = wrong(made[7]), wrong(made[31]), missing(made[32])
    made[50] = replace(
        made[50],
        verdict=Verdict.NOT_FINISHED,
        exit_code=3,
        findings=(*example.PASSED, Finding("samples.error", Status.ERROR, "x", note="the device ran out of memory")),
        samples=(),
        bases=(),
    )
    return batch(tuple(made), 2)


def unlike() -> VerifiedBatch:
    """Verify recipes without a matrix, one of which cannot be read, and one with a single axis."""
    made = [verified(*recipes({}, f"{name}.yaml", name)) for name in ("ink", "knight", "portrait_detail")]
    error = FileError("bad.yaml:3:1: there is no key 'lora'; did you mean loras?")
    strengths = map(verified, recipes({"strength": ["0.25", "0.5", "0.75", "1"]}, "one_axis.yaml", "ink-${strength}"))
    return batch((*made, VerifiedOutput.failed("bad.yaml", error), *strengths))


def weights() -> VerifiedBatch:
    """Verify without samples."""
    axes = {"style": ["ink", "oil"], "character": ["knight", "owl", "none"]}
    made = [replace(verified(each), samples=(), bases=(), findings=example.PASSED) for each in recipes(axes)]
    made[2] = wrong(made[2])
    return VerifiedBatch(tuple(replace(each, samples=()) for each in made[:5]), (), 3.0, example.ENVIRONMENT)


def texts() -> VerifiedBatch:
    """Verify language models."""
    sample = example.texts().texts[0]
    said = KeptSample("baked", sample.prompt, None, "tokens 48", text=sample.texts["runtime"] * 4)
    base = replace(said, model="stories260K", text=sample.texts["base"])
    made = (verified(each, samples=(said,)) for each in recipes({"strength": ["0.5", "1.0"], "set": ["a", "b"]}))
    return VerifiedBatch(tuple(made), (base,), 5.0, example.ENVIRONMENT)


def hostile() -> VerifiedBatch:
    """Verify where every text tries to be more than text."""
    evil = "<script>window.hacked=1</script><img src=x onerror=alert(1)>|`*_[a](http://x)\0\x1b\ud800"
    outputs = []
    for output in sweep().outputs:
        sample = replace(output.samples[0], prompt=evil, settings=evil)
        finding = replace(example.WRONG, subject=evil, note=evil)
        outputs.append(replace(wrong(output), name=evil, samples=(sample,), findings=(finding,)))
    outputs[1] = VerifiedOutput.failed(evil, FileError(evil, evil), outputs[1].recipe)
    return VerifiedBatch(tuple(outputs), (replace(sweep().bases[0], model=evil, prompt=evil, settings=evil),))


BATCHES: dict[str, Callable[[], VerifiedBatch]] = {
    "sweep": sweep,
    "sixty": sixty,
    "unlike": unlike,
    "weights": weights,
    "texts": texts,
    "hostile": hostile,
}


def main() -> None:
    for name, made in BATCHES.items():
        report.write_all(made(), Path(sys.argv[1]) / name)


if __name__ == "__main__":
    main()
