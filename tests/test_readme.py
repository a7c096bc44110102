"""README.md is short and up to date, and what docs/extending.md adds to lorabake works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorabake.recipe import parse_recipe

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# -- README.md ---------------------------------------------------------------------------------------


def counts() -> str:
    """Count the cells of the pages that tests write; each cell is proven by one of them."""
    rows = []
    for name, what, cell in (("coverage", "kinds of adapters", r"\d+"), ("formats", "formats of LoRA files", "●")):
        page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        head, _, body = page.partition("\n| family |")[2].partition("\n")
        table = [line.strip("|").split("|")[1:] for line in body.splitlines()[1:] if line.startswith("| ")]
        cells = sum(bool(re.fullmatch(cell, each.strip())) for line in table for each in line)
        columns = len(head.strip().strip("|").split("|"))
        rows.append(f"| {what} × families | [{name}](docs/{name}.md) | {columns} × {len(table)} | {cells} |")
    page = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^\| .* \| (?:lorabake's formulas|diffusers, PEFT) \|$", page, re.MULTILINE)
    rows.append(f"| families that `verify` draws | [verification](docs/verification.md) | | {len(drawn)} |")
    return "\n".join(["| table | page | size | proven cells |", "|---|---|---|---|", *rows])


def test_counts_are_those_of_the_pages() -> None:
    assert counts() in README, counts()


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 250


def test_the_recipe_is_the_demo() -> None:
    demo = (ROOT / "recipes" / "demo.yaml").read_text(encoding="utf-8")
    assert parse_recipe(blocks(README, "yaml")[0], ROOT) == parse_recipe(demo, ROOT)


# -- docs/extending.md -------------------------------------------------------------------------------


def marked(mark: str) -> list[tuple[str, ...]]:
    return re.findall(rf"<!-- {mark} -->\n```(?:python|text)\n(.*?)^```$", EXTENDING, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with what docs/extending.md adds to it."""
    root = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "lorabake", root / "lorabake", ignore=shutil.ignore_patterns("__pycache__"))
    for path, where, anchor, text in marked(r'add: (\S+) (before|after) "(.+?)"'):
        source = (root / path).read_text(encoding="utf-8")
        assert source.count(f"\n{anchor}") == 1, anchor
        added = f"{text}\n\n{anchor}" if where == "before" else f"{anchor}\n{text.rstrip()}"
        (root / path).write_text(source.replace(f"\n{anchor}", f"\n{added}"), encoding="utf-8")
    files = marked(r"file: (\S+)")
    assert len(files) == EXTENDING.count("<!-- file: ") >= 4
    for path, text in files:
        assert not (root / path).exists()
        (root / path).write_text(text, encoding="utf-8")
    return root


def run_with(package: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lorabake", *map(str, arguments)],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )


def bake_with(package: Path, recipe: Path) -> str:
    done = run_with(package, "bake", recipe, "--no-fsync")
    assert done.returncode == 0, done.stderr
    return done.stderr


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def test_added_kind_bakes(extended: Path, tmp_path: Path) -> None:
    base = {"layers.0.fc.weight": noise(6, 4), "layers.0.fc.bias": noise(6)}
    lora = {"layers.0.fc.outer_u": noise(6), "layers.0.fc.outer_v": noise(4)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(lora, tmp_path / "lora.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nbase: base.safetensors\nloras: [{path: lora.safetensors, strength: 0.5}]\n"
        "output: {path: out.safetensors}\n"
    )
    assert "2 of 2 tensors applied (model ×1; outer product ×1; rank 1)" in bake_with(extended, recipe)
    baked = load_file(tmp_path / "out.safetensors")
    wanted = base["layers.0.fc.weight"] + 0.5 * np.outer(*lora.values())
    np.testing.assert_allclose(baked["layers.0.fc.weight"], wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(baked["layers.0.fc.bias"], base["layers.0.fc.bias"])


@pytest.mark.parametrize("layout", ["own", "diffusers"])
def test_added_architecture_bakes(extended: Path, tmp_path: Path, layout: str) -> None:
    """A diffusers-named LoRA on q and v bakes into fused and into split weights alike."""
    q, k, v, out = (noise(4, 4) + number for number in range(4))
    if layout == "own":
        start = "model.diffusion_model."
        base = {
            start + "stem.weight": noise(4, 3),
            start + "stack.0.mix.qkv.weight": np.concatenate([q, k, v]),
            start + "stack.0.mix.out.weight": out,
        }
    else:
        names = {"to_q": q, "to_k": k, "to_v": v, "to_out.0": out}
        base = {f"pebbles.0.attn.{name}.weight": tensor for name, tensor in names.items()}
        base["embed.weight"] = noise(4, 3)
    lora = {}
    for number, name in enumerate(("to_q", "to_v")):
        lora[f"transformer.pebbles.0.attn.{name}.lora_A.weight"] = noise(2, 4) + number
        lora[f"transformer.pebbles.0.attn.{name}.lora_B.weight"] = noise(4, 2) - number
    lora |= {"lora_transformer_stack_0_mix_out.lora_down.weight": noise(2, 4)}
    lora |= {"lora_transformer_stack_0_mix_out.lora_up.weight": noise(4, 2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(lora, tmp_path / "lora.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nbase: base.safetensors\nloras: [lora.safetensors]\noutput: {path: out.safetensors}\n"
    )
    assert "6 of 6 tensors applied (transformer ×3; LoRA ×3; rank 2)" in bake_with(extended, recipe)
    baked = load_file(tmp_path / "out.safetensors")

    def delta(name: str) -> np.ndarray:
        start = f"transformer.pebbles.0.attn.{name}.lora_"
        return lora[start + "B.weight"] @ lora[start + "A.weight"]

    if layout == "own":
        found = np.split(baked["model.diffusion_model.stack.0.mix.qkv.weight"], 3)
    else:
        found = [baked[f"pebbles.0.attn.{name}.weight"] for name in ("to_q", "to_k", "to_v")]
    for tensor, wanted in zip(found, (q + delta("to_q"), k, v + delta("to_v")), strict=True):
        np.testing.assert_allclose(tensor, wanted, rtol=1e-5, atol=1e-5)


def test_added_dialect_bakes(extended: Path, tmp_path: Path) -> None:
    """Rows in pairs are put into transformers' order: in each head first rows before second ones."""
    stem = "model.layers.0.self_attn"
    base = {f"{stem}.q_proj.weight": noise(8, 8), f"{stem}.o_proj.weight": noise(8, 8) + 1}
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "model.safetensors")
    config = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 2}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    lora = {}
    for number, name in enumerate(("query", "out")):
        lora[f"stack.0.mix.{name}.lora_A.weight"] = noise(2, 8) + number
        lora[f"stack.0.mix.{name}.lora_B.weight"] = noise(8, 2) - number
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("version: 1\nbase: base\nloras: [lora]\noutput: {path: out}\n")
    assert "4 of 4 tensors applied (model ×2; LoRA ×2; rank 2)" in bake_with(extended, recipe)
    baked = load_file(tmp_path / "out" / "model.safetensors")
    for name, projection, rows in (
        ("query", "q_proj", [0, 2, 1, 3, 4, 6, 5, 7]),
        ("out", "o_proj", [0, 1, 2, 3, 4, 5, 6, 7]),
    ):
        up, down = (lora[f"stack.0.mix.{name}.lora_{end}.weight"] for end in "BA")
        wanted = base[f"{stem}.{projection}.weight"] + 2 * (up @ down)[rows]
        np.testing.assert_allclose(baked[f"{stem}.{projection}.weight"], wanted, rtol=1e-5, atol=1e-5)


def test_added_codec_decodes(extended: Path, tmp_path: Path) -> None:
    codes = np.arange(24, dtype=np.uint8).reshape(6, 4)
    lowest, step = noise(6, 1), np.full((6, 1), 0.25, np.float32)
    base = {"layers.0.fc.weight": codes, "layers.0.fc.lowest": lowest, "layers.0.fc.step": step}
    up, down = noise(6, 2), noise(2, 4)
    save_file(base, tmp_path / "base.safetensors")
    stem = "layers.0.fc.lora_"
    save_file({f"{stem}B.weight": up, f"{stem}A.weight": down}, tmp_path / "lora.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nbase: base.safetensors\nloras: [{path: lora.safetensors, strength: 1}]\n"
        "output: {path: out.safetensors, dtype: float32}\n"
    )
    bake_with(extended, recipe)
    baked = load_file(tmp_path / "out.safetensors")
    assert baked.keys() == {"layers.0.fc.weight"}
    np.testing.assert_allclose(baked["layers.0.fc.weight"], lowest + codes * step + up @ down, rtol=1e-5, atol=1e-5)


def test_added_command_runs(extended: Path, tmp_path: Path) -> None:
    save_file({"fc.weight": noise(4, 3)}, tmp_path / "model.safetensors")
    shown = run_with(extended, "keys", str(tmp_path / "model.safetensors"))
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "fc.weight F32 [4, 3]\n", "")
    told = run_with(extended, "--help")
    assert "  keys        List the tensors of a checkpoint or LoRA.\n" in told.stdout
    lost = run_with(extended, "keys", "missing.safetensors")
    assert (lost.returncode, lost.stderr) == (2, "error: missing.safetensors: no such file\n")


@pytest.mark.parametrize("mark", re.findall(r"<!-- run: (\w+) -->", EXTENDING))
def test_examples_on_several_recipes_run(mark: str, tmp_path: Path) -> None:
    save_file({"fc.weight": noise(4, 3)}, tmp_path / "base.safetensors")
    save_file({"fc.weight": noise(4, 3) + 1}, tmp_path / "base2.safetensors")
    save_file(
        {"fc.lora_A.weight": noise(2, 3), "fc.lora_B.weight": noise(4, 2)},
        tmp_path / "lora.safetensors",
    )
    strengths = {"soft": 0.3, "strong": 1.5, "other": 1.0}
    for name, strength in strengths.items():
        base = "base2" if name == "other" else "base"
        (tmp_path / f"{name}.yaml").write_text(
            f"version: 1\nbase: {base}.safetensors\nloras: [{{path: lora.safetensors, strength: {strength}}}]\n"
            f"output: {{path: {name}.safetensors}}\n"
        )
    (example,) = marked(f"run: {mark}")
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = [line.split()[0] for line in done.stdout.splitlines()]
    assert shown == [f"{name}.safetensors" for name in strengths][: 3 if mark == "engine" else 2]
    lora = load_file(tmp_path / "lora.safetensors")
    for file in shown:
        name = file.removesuffix(".safetensors")
        before = load_file(tmp_path / ("base2.safetensors" if name == "other" else "base.safetensors"))["fc.weight"]
        wanted = before + strengths[name] * lora["fc.lora_B.weight"] @ lora["fc.lora_A.weight"]
        np.testing.assert_allclose(load_file(tmp_path / file)["fc.weight"], wanted, rtol=1e-5, atol=1e-5)


def test_added_refusal_is_told(extended: Path, tmp_path: Path) -> None:
    base = {f"layers.{number}.fc.weight": noise(6, 4) for number in range(2)}
    lora = {f"layers.{number}.fc.lora_down.weight": noise(2, 4) for number in range(2)}
    lora |= {f"layers.{number}.fc.lora_up.weight": noise(6, 2) for number in range(2)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(lora | {"layers.1.fc.dora_scale": noise(6, 1)}, tmp_path / "lora.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nbase: base.safetensors\nloras: [lora.safetensors]\noutput: {path: out.safetensors}\n"
    )
    refused = run_with(extended, "plan", recipe)
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: LoRA 'lora.safetensors': a dora_scale without an alpha: with which scale was it trained?",
        "  1 of its tensors: layers.N.fc",
        '  To bake without them, add to this LoRA: ignore: ["layers.1.fc"]',
    ]
    save_file(lora, tmp_path / "lora.safetensors")
    assert run_with(extended, "plan", recipe).returncode == 0
