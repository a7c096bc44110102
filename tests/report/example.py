"""Verifications to look at and to test with: a true one, a false one, weights alone, many findings, texts.

`python -m tests.report.example FOLDER` writes their reports below FOLDER.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorabake import report
from lorabake.baking import plan
from lorabake.documents.names import Figures
from lorabake.planning import Plan
from lorabake.recipe import load_recipe
from lorabake.verification.findings import (
    Effect,
    Environment,
    Finding,
    Identity,
    Likeness,
    PromptSample,
    Samples,
    Status,
    SweepSample,
    TensorVerdict,
    TextSample,
    Verification,
)
from tests import builders as b

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels

SIDE = 64
NAMES = ("ink_style", "knight", "texture_locon", "film_grain", "soft_light", "portrait_detail")
LORAS = tuple(f"{name}.safetensors" for name in NAMES)
RECIPE = """\
version: 1
base: base.safetensors
loras:
  - {path: ink_style.safetensors, strength: 0.8}
  - {path: knight.safetensors, strength: {unet: 0.6, text_encoder: 0.3}}
  - path: texture_locon.safetensors
    strength: 0.5
    blocks: {"up_blocks.*": 0}
output: {path: out.safetensors}
"""


@cache
def small_plan() -> Plan:
    """Plan a bake of three LoRAs; the plan needs no file afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        b.save(folder / "base.safetensors", b.sd1())
        for seed, lora in enumerate(LORAS[:3], start=1):
            b.sd1_lora(folder / lora, seed=seed, rank=2 * seed)
        (folder / "recipe.yaml").write_text(RECIPE)
        return plan(load_recipe(folder / "recipe.yaml"))


def drawing(hue: float, ink: float, seed: int = 0) -> Pixels:
    """Draw a disc over a gradient; `ink` adds what a LoRA would."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    disc = np.hypot(x - 0.5, y - 0.55) < 0.27
    stripes = (np.sin((x + y) * 40) > 0.4) * ink
    hat = (abs(x - 0.5) < 0.6 * (y - 0.05)) & (y < 0.32)
    red = 0.55 + 0.3 * y + 0.2 * np.sin(hue) - 0.5 * disc - stripes * 0.3
    green = 0.65 - 0.2 * y + 0.2 * np.cos(hue) - 0.2 * disc - stripes * 0.3
    blue = 0.85 - 0.5 * y + 0.3 * disc * np.cos(hue) - stripes * 0.3
    picture = np.stack([red, green, blue], axis=2)
    picture = np.where((hat & (ink > 0))[..., None], [0.85, 0.7, 0.2], picture)
    picture = picture + np.random.default_rng(seed).normal(0, 0.01, picture.shape)
    return np.asarray((picture.clip(0, 1) * 255).round(), np.uint8)


def nearly(picture: Pixels, most: int, seed: int = 5) -> Pixels:
    """Move some pixels by up to `most` levels."""
    noise = np.random.default_rng(seed).integers(-most, most + 1, picture.shape)
    noise[np.random.default_rng(seed).random(picture.shape) < 0.6] = 0
    return np.asarray((picture.astype(int) + noise).clip(0, 255), np.uint8)


def pictures(off: int = 1) -> Samples:
    """Sample three prompts; `off` is by how many levels the baked pictures differ."""
    prompts = ("a knight in the snow", "a red house by the lake, ink drawing", "portrait of an owl")
    samples = []
    for number, prompt in enumerate(prompts):
        base, runtime = drawing(number * 1.3, 0), drawing(number * 1.3, 0.8)
        likeness = {
            "base": Likeness(0.41 + number / 20, 16.2 - number, 0.61),
            "floor": Likeness(0.0008 * (number + 1), 58.1, 0.9996),
            "baked": Likeness(0.0007 * off * (number + 1), 58.4 - 6 * math.log2(off), 0.9997 - off / 1e4),
        }
        made = {"base": base, "runtime": runtime, "floor": nearly(runtime, 1, 3), "baked": nearly(runtime, off)}
        samples.append(PromptSample(prompt, 7 + number, made, likeness))
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    sweep = SweepSample(prompts[0], 7, strengths, tuple(drawing(0, 0.8 * each) for each in strengths))
    settings = {"scheduler": "DDIM, trailing", "steps": 20, "size": (64, 64), "guidance": 5.0, "device": "cpu"}
    return Samples("diffusers", settings, tuple(samples), (sweep,))


def texts() -> Samples:
    """Sample two prompts of a language model."""
    values = np.random.default_rng(1)
    samples = []
    for prompt in ("Once upon a time", "The dragon said"):
        logits = {
            model: tuple(float(v) for v in size * np.exp(values.normal(0, 0.6, 48)))
            for model, size in (("base", 4.0), ("floor", 0.004), ("baked", 0.0035))
        }
        tale = f"{prompt}, there was a big green dragon named Tom. Tom loved to eat red berries."
        plain = f"{prompt}, there was a little girl named Lily. She loved to play outside in the park."
        made = {"base": plain, "runtime": tale, "floor": tale, "baked": tale}
        samples.append(TextSample(prompt, made, logits))
    return Samples("peft", {"tokens": 48, "decoding": "greedy", "device": "cpu"}, texts=tuple(samples))


def effects(count: int = 3) -> Iterator[Effect]:
    """Make up what LoRAs change in SD 1.5."""
    unet = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)]
    unet += ["mid_block.attentions.0"] + [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)]
    encoder = [f"text_model.encoder.layers.{i}" for i in range(12)]
    for component, blocks in (("text_encoder", encoder), ("unet", unet)):
        for number, lora in enumerate(LORAS[:count]):
            if component == "text_encoder" and number == 2:
                continue
            for line, block in enumerate(blocks):
                bump = math.exp(-(((line / len(blocks)) - 0.2 - 0.25 * number) ** 2) * 12)
                yield Effect(lora, component, block, (0.004 + 0.11 * bump) / (1 + number / 2))


def tensors(fault: str = "applied", factor: float = 1.0) -> Iterator[TensorVerdict]:
    """Say of each LoRA what was found; `fault` is the second's."""
    for lora in LORAS[:3]:
        for module, key in b.SD1_KEYS.items():
            is_at_fault = lora == LORAS[1]
            yield TensorVerdict(
                lora, module, key, fault if is_at_fault else "applied", factor if is_at_fault else 1.0
            )


ENVIRONMENT = Environment(
    {"lorabake": "0.1.0", "Python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6"},
    "Linux x86_64",
    "cpu",
    "cpu",
    Identity("base.safetensors", {"base.safetensors": "0123456789abcdef" * 4}, is_whole=True),
    Identity("demo.safetensors", {"demo.safetensors": "fedcba9876543210" * 4}, is_whole=True),
    "lorabake verify recipe.yaml --report out/report --date 2026-11-29",
    "2026-11-29",
)
PASSED = (
    Finding(
        "structure.file",
        Status.PASS,
        "out.safetensors",
        "5,966,382 bytes",
        "",
        "header, offsets and length agree",
        Figures(5_966_382, unit="bytes"),
    ),
    Finding("structure.keys", Status.PASS, "1143 tensors", "", "", "exactly the base's keys", Figures(count=1143)),
    Finding(
        "structure.dtype",
        Status.PASS,
        "1143 tensors",
        "F16 ×1130, F32 ×12",
        "",
        "dtypes and shapes as due",
        Figures(count=1143),
    ),
    Finding("structure.metadata", Status.PASS, "out.safetensors", "", "", "the header holds this recipe"),
    Finding(
        "weights.untouched",
        Status.PASS,
        "800 untouched tensors",
        "800",
        "800",
        "byte-equal to the base",
        Figures(800, 800, "tensors", 800),
    ),
    Finding(
        "weights.baked",
        Status.PASS,
        "343 baked tensors",
        "0 wrong values",
        "",
        "99.97% of 859,520 values are the nearest ones; float32's own error accounts for the other 258",
        Figures(0, 0, "values", 343),
    ),
    *(
        Finding(
            "weights.lora",
            Status.PASS,
            lora,
            "264 tensors",
            "264",
            "at the strength due",
            Figures(264, 264, "tensors"),
        )
        for lora in LORAS[:3]
    ),
)
FAINT = Finding(
    "weights.resolution",
    Status.WARN,
    LORAS[0],
    "83%",
    "90%",
    "the rest was lost below the output dtype's resolution",
    Figures(0.83, 0.9, "share"),
)
WRONG = Finding(
    "weights.strength",
    Status.FAIL,
    LORAS[1],
    "0.8",
    "0.6",
    "is applied at another strength in 128 of 128 unet modules",
    Figures(1.333, 1, "factor"),
)


def true(samples: Samples | None = None, found: tuple[Finding, ...] = ()) -> Verification:
    """Verify a checkpoint that is what its recipe says."""
    figures = Figures(0.0007, 0.0016, "distance", 3)
    told = Finding(
        "samples.pictures", Status.PASS, "3 prompts", "0.0007", "0.0016", "near, as rounding allows", figures
    )
    return Verification(
        baked=Path("out/demo.safetensors"),
        recipe=RECIPE,
        findings=(*PASSED, *found, *([told] if samples else ())),
        seconds={"structure": 0.04, "weights": 3.2, **({"samples": 41.0} if samples else {})},
        plan=small_plan(),
        effects=tuple(effects()),
        tensors=tuple(tensors()),
        samples=samples,
        environment=ENVIRONMENT,
        digests={"base.safetensors": "0123456789abcdef" * 4, "knight.safetensors": "89abcdef01234567" * 4},
    )


def different() -> Verification:
    """Verify a checkpoint with one LoRA too strong."""
    made = replace(true(pictures(60)), tensors=tuple(tensors("strength", 1.333)))
    told = Finding("samples.pictures", Status.FAIL, "a knight in the snow", "0.042", "0.0016", "is another picture")
    return replace(made, findings=(*PASSED[:-2], WRONG, PASSED[-1], told))


def broken() -> Verification:
    """Verify a file that cannot be read: nothing but one finding."""
    cut = Finding(
        "structure.file", Status.FAIL, "demo.safetensors", note="cannot be read: the data ends 12 bytes early"
    )
    return Verification(Path("out/demo.safetensors"), "", (cut,), {"structure": 0.01})


def many() -> Verification:
    """Verify with 400 findings of all sorts and six LoRAs."""
    found = []
    for number in range(400):
        status = Status.FAIL if number % 17 == 0 else Status.WARN if number % 23 == 0 else Status.PASS
        status = Status.SKIP if number % 31 == 1 else status
        key = f"model.diffusion_model.input_blocks.{number}.1.transformer_blocks.0.attn1.to_q.weight"
        check, note = ("strength", "") if number % 2 else ("values", f"1 of 160 modules ({key}) changes nothing")
        found.append(Finding(f"weights.{check}", status, key, f"{number}", "0.52", note))
    return replace(true(), findings=(*PASSED, *found), effects=tuple(effects(6)))


def prompts() -> Verification:
    """Verify with pictures and texts of eight prompts."""
    three, two = pictures().pictures, texts().texts
    drawn = tuple(replace(three[at % 3], prompt=f"{three[at % 3].prompt}, scene {at + 1}") for at in range(8))
    written = tuple(replace(two[at % 2], prompt=f"{two[at % 2].prompt} on day {at + 1}") for at in range(8))
    return true(replace(pictures(), pictures=drawn, texts=written))


def hostile() -> Verification:
    """Verify where every text tries to be more than text."""
    evil = "<script>window.hacked=1</script><img src=x onerror=alert(1)>|`*_[a](http://x)\0\x1b\ud800"
    made = true(
        replace(pictures(), reference=evil, settings={"scheduler": evil, "names": evil}),
        (replace(WRONG, subject=evil, note=evil),),
    )
    assert made.samples
    first = replace(made.samples.pictures[0], prompt=evil)
    shown = replace(made.samples, pictures=(first,), texts=(replace(texts().texts[0], prompt=evil),))
    return replace(
        made,
        baked=Path(evil.replace("\0", "").replace("/", "")),
        recipe=evil,
        samples=shown,
        effects=(Effect(evil, evil, evil, math.nan), Effect(evil, evil, "b", 0.1)),
        tensors=(TensorVerdict(evil, evil, evil, evil, math.inf),),
        digests={evil: evil},
        environment=replace(
            ENVIRONMENT,
            versions={evil: evil},
            command=evil,
            base=Identity(evil, {evil: evil, "b": evil}, is_whole=False),
        ),
    )


EXAMPLES: dict[str, Callable[[], Verification]] = {
    "true": lambda: true(pictures(), (FAINT,)),
    "different": different,
    "weights": true,
    "broken": broken,
    "many": many,
    "texts": lambda: true(texts()),
    "prompts": prompts,
    "hostile": hostile,
}


def main() -> None:
    for name, example in EXAMPLES.items():
        files = report.write(example(), Path(sys.argv[1]) / name)
        sys.stdout.write(json.dumps({form: f"{path}: {path.stat().st_size}" for form, path in files.items()}) + "\n")


if __name__ == "__main__":
    main()
