"""Sources hold all that planning asks of inputs: planning reads no disk, and nothing changes what was read."""

from __future__ import annotations

import builtins
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path

import pytest

from lorabake import RunOptions, bake, load_recipe, plan
from lorabake.errors import TargetError
from lorabake.keymap import split_qkv
from lorabake.keymap.slots import LoraModule
from lorabake.matching.ledger import Ledger
from lorabake.planning import Plan
from lorabake.planning import plan as plan_of
from lorabake.recipe import Recipe
from lorabake.sources import Sources, resolve
from lorabake.sources.evidence import NotReadError, TensorEvidence
from lorabake.verification import VerifyOptions, verify
from tests import builders as b
from tests import test_dialects, test_embeddings, test_formats, test_growth, test_packing, test_statements, test_ties

ASKING = ("open", "stat", "lstat", "scandir", "listdir", "readlink", "access")
"""What of `os` asks the disk about a path."""


# -- recipes, one for each sort of evidence ----------------------------------------------------------------


def plain(folder: Path) -> Path:
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    return b.recipe(folder)


def trained_apart(folder: Path) -> Path:
    """Tell by the zeros in its tensors that a LoRA's q, k and v were trained apart."""
    test_formats.small_flux(folder)
    test_formats.apart(folder, None)
    return b.recipe(folder)


def tied(name: str) -> Callable[[Path], Path]:
    """Compare what a LoRA has for an embedding with what it has for the head: two uses of one tensor."""

    def make(folder: Path) -> Path:
        change = test_ties.CHANGES[name](11)
        uses = ((test_ties.EMBEDDING, change.embedding), (test_ties.HEAD, change.head))
        lora = {key: tensor for module, slots in uses for key, tensor in test_ties.tensors(module, slots).items()}
        return test_ties.write(folder, lora, change.config)

    return make


def grown(folder: Path) -> Path:
    return test_growth.grown(folder, (6, 9), output={"dtype": "float32"})


def packed(way: str) -> Callable[[Path], Path]:
    return lambda folder: test_packing.world(folder, test_packing.PACKINGS[way], dtype="bfloat16")[0]


def noted(folder: Path) -> Path:
    """Say by a tensor beside each weight how it is stored."""
    test_statements.convrot(folder, "tensor", 64)
    return b.recipe(folder)


def folder_that_says_dtypes(folder: Path) -> Path:
    """Rewrite config.json, which names a dtype, and the index, which has metadata of its own."""
    b.llama(folder / "base", shards=2)
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "bfloat16"}))
    b.peft(folder / "adapter", {"model.layers.0.self_attn.q_proj": b.lora((8, 8), rank=2)})
    return b.recipe(folder, base="base", loras=["adapter"], output={"path": "out", "dtype": "float32"})


def litgpt(folder: Path) -> Path:
    test_dialects.base_of(folder)
    test_dialects.litgpt(folder, test_dialects.LIT_TRAINED, test_dialects.LIT_MODEL)
    return b.recipe(folder, base="base", loras=["adapter"], output={"path": "out"})


def embeddings(folder: Path) -> Path:
    learned, metadata, _ = test_embeddings.FORMS["onetrainer sd1"]
    return test_embeddings.world(folder, learned, metadata)


def another_vae(folder: Path) -> Path:
    b.save(folder / "base.safetensors", b.sd1())
    b.save(folder / "vae.safetensors", b.vae_file("diffusers", seed=9))
    return b.recipe(folder, loras=[], vae="vae.safetensors")


def pipeline(folder: Path) -> Path:
    b.sd1_folder(folder / "base")
    b.sd1_lora(folder / "lora.safetensors")
    return b.recipe(folder, base="base", output={"path": "out", "dtype": "bfloat16"})


RECIPES: dict[str, Callable[[Path], Path]] = {
    "plain": plain,
    "q, k and v trained apart": trained_apart,
    "a tied embedding, whole": tied("whole"),
    "a tied embedding, low-rank and turned": tied("low_rank"),
    "a weight that grows": grown,
    "bitsandbytes": packed("nf4 nested"),
    "GPTQ": packed("gptq act-order"),
    "notes beside weights": noted,
    "a folder that says dtypes": folder_that_says_dtypes,
    "litgpt": litgpt,
    "learned embeddings": embeddings,
    "another VAE": another_vae,
    "a pipeline": pipeline,
}


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    folder = tmp_path / "inputs"
    folder.mkdir()
    return load_recipe(RECIPES[request.param](folder))


# -- planning reads no disk ----------------------------------------------------------------------------------


@pytest.fixture
def nothing_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Take a folder away, and fail whatever asks the disk about anything in it."""

    def take_away(folder: Path) -> None:
        def refusing(ask: Callable[..., object]) -> Callable[..., object]:
            def asked(path: object = ".", *arguments: object, **named: object) -> object:
                if isinstance(path, (str, os.PathLike)):
                    assert not Path(os.path.abspath(path)).is_relative_to(folder), f"asks the disk about {path}"
                return ask(path, *arguments, **named)

            return asked

        shutil.rmtree(folder)
        for name in ASKING:
            monkeypatch.setattr(os, name, refusing(getattr(os, name)))
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", refusing(open))

    yield take_away
    monkeypatch.undo()


def elsewhere(recipe: Recipe) -> Path:
    """Name an output in another folder than the inputs, of the form that the recipe asks for."""
    return recipe.folder.parent / "outputs" / Path(recipe.output.path).name


def test_planning_asks_the_disk_about_no_input(recipe: Recipe, nothing_of: Callable[[Path], None]) -> None:
    output = elsewhere(recipe)
    sources = resolve(recipe)
    before = plan_of(sources, output)
    nothing_of(recipe.folder)
    assert plan_of(sources, output) == before
    assert before.steps or before.copies
    assert len(before.ledgers) == len(recipe.loras)


def test_the_public_plan_opens_sources_and_plans(tmp_path: Path) -> None:
    recipe = load_recipe(plain(tmp_path))
    assert seen(plan(recipe)) == seen(plan_of(resolve(recipe)))


def test_what_would_ask_the_disk_is_noticed(tmp_path: Path, nothing_of: Callable[[Path], None]) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "config.json").write_text("{}")
    nothing_of(tmp_path / "inputs")
    for ask in (Path.exists, Path.read_bytes, Path.resolve, Path.stat, os.listdir):
        with pytest.raises(AssertionError, match="asks the disk"):
            ask(tmp_path / "inputs" / "config.json")


def test_evidence_is_needed_where_values_decide(tmp_path: Path) -> None:
    """Planning with less evidence is an error: no other plan comes of it."""
    needed = {"q, k and v trained apart": ("numbers", "blocks"), "a tied embedding, whole": ("contents",)}
    for name, missing in needed.items():
        folder = tmp_path / name
        folder.mkdir()
        sources = resolve(load_recipe(RECIPES[name](folder)))
        (lora,) = sources.loras
        for part in missing:
            less = replace(lora, evidence=replace(lora.evidence, **{part: {}}))
            with pytest.raises(
                NotReadError, match="was not read as evidence before planning\nThis is a fault of lorabake"
            ):
                plan_of(replace(sources, loras=(less,)))


def test_alphas_are_read_only_where_a_module_may_hold_several(tmp_path: Path) -> None:
    sources = resolve(load_recipe(plain(tmp_path)))
    (lora,) = sources.loras
    assert split_qkv.fused_rows(sources.key_map)
    assert any("alpha" in module.slots for module in lora.tensors.modules.values())
    assert lora.evidence.numbers == {}
    planned = plan_of(sources)
    assert [patch.parts for step in planned.steps for patch in step.patches] == [1] * len(lora.tensors.modules)


def test_a_file_that_nobody_read_is_an_error(tmp_path: Path) -> None:
    evidence = resolve(load_recipe(folder_that_says_dtypes(tmp_path))).evidence
    assert evidence.document("config.json")["model_type"] == "llama"
    with pytest.raises(NotReadError, match=r"unet/config\.json was not read"):
        evidence.document("unet/config.json")
    sources = resolve(load_recipe(folder_that_says_dtypes(tmp_path)))
    for part in ("beside", "sides"):
        with pytest.raises(NotReadError):
            plan_of(replace(sources, evidence=replace(sources.evidence, **{part: {}})))


def test_an_alpha_that_is_no_number_is_read_as_none() -> None:
    slots = test_formats.infos({"up": (4, 2), "down": (2, 4), "alpha": (3,)})
    module = LoraModule("m", {name: slots[name] for name in slots})
    assert TensorEvidence(numbers={"alpha": None}).scale_of(module) is None
    assert TensorEvidence(numbers={"alpha": 1.0}).scale_of(module) == 0.5
    with pytest.raises(NotReadError, match="alpha"):
        TensorEvidence().scale_of(module)


def test_small_files_that_decide_are_noted_with_their_fingerprints(tmp_path: Path) -> None:
    sources = resolve(load_recipe(litgpt(tmp_path)))
    names = {path.relative_to(tmp_path).as_posix() for path in sources.evidence.read}
    assert names >= {"base/config.json", "adapter/hyperparameters.yaml", "adapter/model_config.yaml"}
    (lora,) = sources.loras
    sides = {side.name: side.sha256 for side in sources.evidence.sides_of(lora.checkpoint)}
    assert sides == {name: b.sha256(tmp_path / "adapter" / name) for name in sides}
    assert len(sides) == 2


def test_an_output_is_compared_with_where_inputs_were(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    recipe = load_recipe(plain(tmp_path))
    sources = resolve(recipe)
    for output in (tmp_path / "base.safetensors", tmp_path / "link" / "lora.safetensors"):
        with pytest.raises(TargetError, match="is an input of this recipe"):
            plan_of(sources, output)


# -- what looks frozen is frozen -----------------------------------------------------------------------------


def seen(value: object) -> object:
    """Write all that a value holds, at any depth, so that two moments can be compared."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, tuple((each.name, seen(getattr(value, each.name))) for each in fields(value))
    if isinstance(value, Mapping):
        return tuple((key, seen(each)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return type(value).__name__, tuple(map(seen, value))
    if isinstance(value, (set, frozenset)):
        return "set", tuple(sorted(map(repr, value)))
    return repr(value)


def records(value: object) -> Iterator[object]:
    """Yield the records that a value is made of."""
    if is_dataclass(value) and not isinstance(value, type):
        yield value
        for each in fields(value):
            yield from records(getattr(value, each.name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from records(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from records(each)


def queries(value: object) -> None:
    """Ask a record everything that takes no arguments."""
    for name, asked in vars(type(value)).items():
        if isinstance(asked, property):
            getattr(value, name)


def test_no_question_changes_sources_or_plans(recipe: Recipe) -> None:
    sources = resolve(recipe)
    before = seen(sources)
    made = plan_of(sources, elsewhere(recipe))
    assert seen(sources) == before, "planning changed its sources"
    planned = seen(made)
    for record in (sources, sources.key_map, *sources.loras, made, *made.files, *made.steps, *made.patches):
        queries(record)
    for component in sources.key_map.placed:
        for layout in sources.key_map.component(component).layouts:
            sources.key_map.modules_in(component, layout.name)
    made.report()
    made.peak_memory()
    assert seen(sources) == before
    assert seen(made) == planned


def test_baking_and_verifying_change_no_plan(tmp_path: Path) -> None:
    recipe = load_recipe(plain(tmp_path))
    made = plan(recipe)
    before = seen(made)
    done = bake(made, RunOptions(fsync=False))
    assert seen(made) == before, "baking changed the plan"
    done.report()
    found = verify(recipe, options=VerifyOptions(stages=("structure", "quick", "weights")))
    assert found.is_true
    assert found.plan is not None
    assert seen(found.plan) == before, "verifying changed its plan"


def test_records_of_sources_and_plans_are_frozen(recipe: Recipe) -> None:
    made = plan_of(resolve(recipe), elsewhere(recipe))
    kinds = {type(record): record for record in records(made)}
    assert {Plan, Sources} <= kinds.keys()
    assert Ledger in kinds or not made.ledgers
    for kind, record in kinds.items():
        for each in fields(kind):
            with pytest.raises(FrozenInstanceError):
                setattr(record, each.name, None)
        mutable = [each.name for each in fields(kind) if isinstance(getattr(record, each.name), (list, set, Counter))]
        assert not mutable, f"{kind.__name__}.{mutable} can be changed"


def test_a_key_map_with_more_names_is_another_one(tmp_path: Path) -> None:
    key_map = resolve(load_recipe(plain(tmp_path))).key_map
    before = seen(key_map)
    module = next(iter(key_map.modules["unet"].values()))
    wider = key_map.with_modules([replace(module, name="another.name")])
    assert wider.modules["unet"]["another.name"].views == module.views
    assert "another.name" not in key_map.modules["unet"]
    with pytest.raises(ValueError, match=module.name.replace(".", r"\.")):
        key_map.with_modules([replace(module, views={})])
    assert seen(key_map) == before
