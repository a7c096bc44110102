"""Models that carry programs: none of them runs, whatever stdin says, and a finding tells of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabake.baking import bake
from lorabake.options import RunOptions
from lorabake.recipe import load_recipe
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, SampleOptions, Status, Verification
from tests import builders as b

transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from tests import pipelines  # noqa: E402

CANARY = "canary"
MODULE = "lorabake_test_own"
"""What the planted programs are called; Python finds it in the current folder, as `python -m` does."""

Plant = Callable[[Path], object]


class Payload:
    """Write the canary where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a language model and a pipeline, a LoRA of each, and bake them."""
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    pipelines.language_model("LlamaForCausalLM").save_pretrained(folder / "text/base")
    pipelines.words().save_pretrained(folder / "text/base")
    modules = {f"model.layers.{layer}.self_attn.q_proj": b.lora((16, 16)) for layer in range(2)}
    b.peft(folder / "text/lora", modules, target_modules=["q_proj"])
    pipeline = pipelines.save(folder / "pictures/base", "sd3")
    name, module = next(
        (name, module) for name, module in pipeline.transformer.named_modules() if name.endswith("attn.to_q")
    )
    out, inputs = module.weight.shape
    (folder / "pictures/lora").mkdir()
    tensors = {
        f"transformer.{name}.lora_A.weight": torch.ones(2, inputs),
        f"transformer.{name}.lora_B.weight": torch.ones(out, 2),
    }
    save_file(tensors, folder / "pictures/lora/pytorch_lora_weights.safetensors")
    for world in ("text", "pictures"):
        said = {"prompts": ["a"], "steps": 1, **({"size": 32} if world == "pictures" else {})}
        recipe = b.recipe(folder / world, base="base", loras=["lora"], output={"path": "out"}, verify=said)
        bake(load_recipe(recipe), RunOptions(fsync=False))
    return folder


def program(folder: Path) -> str:
    """Return a program that writes the canary of a world."""
    return f"import os\nos.makedirs({str(canary(folder))!r}, exist_ok=True)\nclass Own:\n    pass\n"


def canary(folder: Path) -> Path:
    """Return where the programs of a world leave their trace."""
    return next(each for each in (folder, *folder.parents) if each.name in ("text", "pictures")) / CANARY


def edit(path: Path, **fields: object) -> None:
    """Change fields of a JSON file, made where it is missing."""
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(said | fields))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def in_config(base: Path, **fields: object) -> None:
    write(base / f"{MODULE}.py", program(base))
    own = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoModel"), f"{MODULE}.Own")
    edit(base / "config.json", auto_map=own, **fields)


def in_tokenizer(tokenizer: Path, name: str = "tokenizer_config.json") -> None:
    write(tokenizer / f"{MODULE}.py", program(tokenizer))
    own = {"AutoTokenizer": [f"{MODULE}.Own", f"{MODULE}.Own"], "AutoProcessor": f"{MODULE}.Own"}
    edit(tokenizer / name, auto_map=own, tokenizer_class="Own", processor_class="Own")


def in_template(base: Path) -> None:
    template = f"{{{{ cycler.__init__.__globals__.os.mkdir({str(canary(base))!r}) }}}}"
    edit(base / "tokenizer_config.json", chat_template=template)
    write(base / "chat_template.jinja", template)


def pickled(base: Path, *names: str) -> None:
    for name in names:
        (base / name).write_bytes(pickle.dumps({"w": Payload(canary(base))}, protocol=2))


def only_a_pickle(base: Path) -> None:
    """Leave a legitimate pickle as the only weights."""
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()


def in_adapter(base: Path) -> None:
    write(base.parent / f"{MODULE}.py", program(base))
    edit(base.parent / "lora/adapter_config.json", megatron_config={"a": 1}, megatron_core=MODULE)


TEXTS: dict[str, tuple[Plant, str]] = {
    "a configuration": (in_config, "auto_map in config.json"),
    "a configuration of a model that transformers lacks": (
        lambda base: in_config(base, model_type="own"),
        "auto_map in config.json",
    ),
    "another's repository": (
        lambda base: edit(base / "config.json", auto_map={"AutoConfig": "someone/model--own.Own"}, model_type="own"),
        "auto_map in config.json",
    ),
    "a tokenizer": (in_tokenizer, "auto_map in tokenizer_config.json"),
    "an auto_map of no form": (lambda base: edit(base / "config.json", auto_map=[1]), "auto_map in config.json"),
    "generation": (
        lambda base: write(base / "custom_generate/generate.py", program(base)),
        "custom_generate/generate.py",
    ),
    "a chat template": (in_template, ""),
    "pickles beside the weights": (
        lambda base: pickled(base, "pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"),
        "",
    ),
    "a pickle in place of the weights": (only_a_pickle, ""),
    "a pickle beside the adapter": (
        lambda base: (
            shutil.copy(base.parent / "lora/adapter_model.safetensors", base.parent / "lora/own.safetensors"),
            pickled(base.parent / "lora", "adapter_model.bin"),
        ),
        "",
    ),
    "a module that PEFT would import": (in_adapter, ""),
    "a kernel": (lambda base: edit(base / "config.json", attn_implementation="someone/kernel"), ""),
    "a kernel under its inner name": (
        lambda base: edit(base / "config.json", _attn_implementation="someone/kernel"),
        "",
    ),
}
"""What is planted, and how the finding names it; "" where nothing asks for a program to be run."""

PICTURES: dict[str, tuple[Plant, str]] = {
    "a pipeline": (
        lambda base: (
            write(base / "pipeline.py", program(base)),
            write(base / f"{MODULE}.py", program(base)),
            edit(base / "model_index.json", _class_name=[MODULE, "Own"]),
        ),
        "_class_name in model_index.json",
    ),
    "a component": (
        lambda base: (
            write(base / f"transformer/{MODULE}.py", program(base)),
            edit(base / "model_index.json", transformer=[MODULE, "Own"]),
        ),
        "transformer in model_index.json",
    ),
    "a scheduler": (
        lambda base: (
            write(base / f"scheduler/{MODULE}.py", program(base)),
            edit(base / "model_index.json", scheduler=[MODULE, "Own"]),
        ),
        "scheduler in model_index.json",
    ),
    "a network that asks for its class": (
        lambda base: (
            in_config(base / "transformer"),
            edit(base / "model_index.json", scheduler=["diffusers", "AutoModel"]),
            shutil.copy(base / "transformer/config.json", base / "scheduler/config.json"),
            write(base / f"scheduler/{MODULE}.py", program(base)),
        ),
        "auto_map in transformer/config.json",
    ),
    "a tokenizer": (lambda base: in_tokenizer(base / "tokenizer"), "auto_map in tokenizer/tokenizer_config.json"),
    "a tokenizer of any class": (
        lambda base: (
            in_tokenizer(base / "tokenizer"),
            edit(base / "model_index.json", tokenizer=["transformers", "AutoTokenizer"]),
        ),
        "auto_map in tokenizer/tokenizer_config.json",
    ),
    "a model in place of a tokenizer": (
        lambda base: (
            in_config(base / "tokenizer"),
            edit(base / "model_index.json", tokenizer=["transformers", "AutoModelForCausalLM"]),
        ),
        "auto_map in tokenizer/config.json",
    ),
    "a module of Python's": (lambda base: edit(base / "model_index.json", tokenizer=["os", "mkdir"]), ""),
    "what a library imports": (lambda base: edit(base / "model_index.json", tokenizer=["utils", "os"]), ""),
    "a function": (lambda base: edit(base / "model_index.json", tokenizer=["transformers", "pipeline"]), ""),
    "no class": (lambda base: edit(base / "model_index.json", tokenizer=[1, {}, 3]), ""),
    "a folder outside": (
        lambda base: edit(base / "model_index.json", **{f"../{CANARY}": ["diffusers", "AutoencoderKL"]}),
        "",
    ),
    "an absolute folder": (
        lambda base: edit(base / "model_index.json", **{str(canary(base)): ["diffusers", "AutoencoderKL"]}),
        "",
    ),
    "a pipeline that is none": (lambda base: edit(base / "model_index.json", _class_name="utils"), ""),
}


def look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Verification:
    """Sample in a folder that Python imports from, with a stdin that agrees to everything."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    options = VerifyOptions(stages=("structure", "samples"), samples=SampleOptions())
    return verify(load_recipe(folder / "recipe.yaml"), None, options)


def notes(verification: Verification, *checks: str) -> list[Finding]:
    return [each for each in verification.findings if each.check in checks]


def check(verification: Verification, folder: Path, said: str) -> None:
    """Ask that nothing ran, that no stage broke, and that what asks for a program is named."""
    assert not (folder / CANARY).exists()
    assert not [each for each in verification.findings if each.status is Status.ERROR]
    told = notes(verification, "samples.code", "samples.skipped")
    if said:
        (first, *_) = told
        assert said in first.note
        assert "carries code of its own" in first.note
        assert "which lorabake does not run" in first.note
    else:
        assert not notes(verification, "samples.code")
    assert verification.samples is not None or notes(verification, "samples.skipped")


@pytest.mark.parametrize("way", TEXTS)
def test_a_language_model(way: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made / "text", tmp_path / "text")
    plant, said = TEXTS[way]
    plant(tmp_path / "text/base")
    verification = look(tmp_path / "text", monkeypatch)
    check(verification, tmp_path / "text", said)
    lost = ("a configuration of a model that transformers lacks", "another's repository", "a tokenizer")
    assert (verification.samples is None) is (way in lost)
    if verification.samples is not None:
        assert verification.samples.reference == ("lorabake's formulas" if "PEFT" in way else "PEFT")


@pytest.mark.parametrize("way", PICTURES)
def test_a_pipeline(way: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made / "pictures", tmp_path / "pictures")
    plant, said = PICTURES[way]
    plant(tmp_path / "pictures/base")
    check(look(tmp_path / "pictures", monkeypatch), tmp_path / "pictures", said)


@pytest.mark.parametrize("world", ["text", "pictures"])
def test_without_programs_nothing_is_told(
    world: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / world, tmp_path / world)
    verification = look(tmp_path / world, monkeypatch)
    check(verification, tmp_path / world, "")
    assert verification.samples is not None


def test_a_model_of_a_hundred_million_layers_is_not_built(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "text", tmp_path / "text")
    folder = tmp_path / "text"
    edit(folder / "base" / "config.json", num_hidden_layers=10**8)
    verification = look(folder, monkeypatch)
    assert any("no model has so many" in finding.note for finding in verification.findings)


def test_modules_in_the_current_folder_are_not_imported(tmp_path: Path) -> None:
    for name in ("yaml", "click", "pydantic", "tqdm", "numpy", "torch", "gguf"):
        write(tmp_path / f"{name}.py", f"open({str(tmp_path / CANARY)!r}, 'w')\n")
    for arguments in (("plan", "recipe.yaml"), ("inspect", "lora.gguf")):
        command = [sys.executable, "-m", "lorabake", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ended.returncode == 2, ended.stderr
    assert not (tmp_path / CANARY).exists()
