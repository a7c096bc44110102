"""Each refusal alone: what it refuses, in which words, and what it lets through."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorabake.adapters import kinds, kinds_of, shared, suffixes
from lorabake.adapters.kind import Kind
from lorabake.architectures import architectures
from lorabake.errors import MatchError
from lorabake.keymap.adapter_config import read_config
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.slots import LoraModule, sort_tensors
from lorabake.keymap.view import Region, View
from lorabake.matching import refusals
from lorabake.matching.candidates import Candidates
from lorabake.matching.drawn import Largest
from lorabake.matching.family import Strangers
from lorabake.matching.ledger import FOR_NONE, Counts, Ledger, ignored_by
from lorabake.matching.names import BaseNames
from lorabake.matching.patches import Patch
from lorabake.matching.refusals import families, files, matrices, modules, programs, shapes
from lorabake.matching.refusals.modules import Configured, Fitting, Understood
from lorabake.matching.refusals.programs import Read
from lorabake.matching.refusals.shapes import Trial
from lorabake.matching.turns import Turns
from lorabake.recipe import Lora
from lorabake.sources.family import identify
from lorabake.sources.loras import LoraSource
from lorabake.sources.recognition import Evidence
from lorabake.tensors.checkpoint import Checkpoint, Part
from lorabake.tensors.header import Header, TensorInfo
from tests.tables import infos

FAMILIES = {family.name: family for family in architectures()}
KINDS = {kind.name: kind for kind in kinds()}
LORA = {"up": (6, 2), "down": (2, 5)}
TYPES = {"LORA": frozenset({"r", "lora_alpha", "use_dora", "modules_to_save", "trainable_token_indices"})}


def configured(**fields: object) -> PeftConfig:
    return read_config({"r": 2, "lora_alpha": 2, **fields}, "adapter_config.json", TYPES)


def view(*shape: int, key: str = "fc.weight") -> View:
    return View((Region(key, 0, shape[0]),), shape)


def part(component: str = "model", key: str = "fc.weight", **more: object) -> Module:
    return Module(component, key.rpartition(".")[0], {"weight": view(6, 5, key=key)}, **more)  # type: ignore[arg-type]


def opened(shapes: dict[str, object]) -> LoraSource:
    """Make an opened LoRA of key names alone."""
    tensors, path = infos(shapes), Path("style")
    checkpoint = Checkpoint(path, False, (Part("", None, (Header(path, tensors, {}, 0, 0, ""),)),), tensors, ())
    return LoraSource(Lora(path="style"), checkpoint, sort_tensors(tensors.values(), suffixes(), shared()), None, {})


def lora(*slots: str, name: str = "fc", **shapes: tuple[int, ...]) -> LoraModule:
    table = dict.fromkeys(slots, (2, 2)) | shapes
    return LoraModule(name, {slot: replace(info, key=f"{name}.{slot}") for slot, info in infos(dict(table)).items()})


def named(module: LoraModule, *spellings: str, **more: object) -> Candidates:
    return Candidates(module, (part(),), spellings, **more)  # type: ignore[arg-type]


def understood(*slots: str, **more: object) -> Understood:
    return Understood(named(lora(*slots), "fc", **more), kinds_of(frozenset(slots)))


def trial(kind: str, weight: View | None = None, stacked: bool = False, **shapes: tuple[int, ...]) -> Trial:
    return Trial(KINDS[kind], shapes, part(stacked=stacked), weight)


def asked(config: PeftConfig, **shapes: tuple[int, ...]) -> Configured:
    return Configured(shapes, config, config.said_of("fc"), ((KINDS["lora"], (6, 5)),))


def read(program: str, kind: str, weight: View | None = None, **shapes: tuple[int, ...]) -> Read:
    return Read(program, KINDS[kind], shapes, weight or view(6, 5))


def entry(**said: object) -> Lora:
    return Lora(path="style", **said)  # type: ignore[arg-type]


def patch(module: str, weight: View, *, scale: float | None = None) -> Patch:
    info: TensorInfo = infos({"up": (6, 2)})["up"]
    return Patch(0, module, KINDS["lora"], {"up": info, "down": info}, weight, 1.0, scale)


def of_one(evidence: str, *, is_text: bool = False) -> Evidence:
    family = FAMILIES[evidence]
    return Evidence(named=(family,), modules={family.name: frozenset({"a.q"})}, is_text=is_text)


TENSORS = infos({"fc.weight": (6, 5)})
BASE = BaseNames(KeyMap.expand(identify(TENSORS), TENSORS))
SWAPPED = View((Region("x", 3, 6), Region("x", 0, 3)), (6, 5))
ALL = Ledger("style", 4, excluded=Counts({"not in components: [vae]": 4}))
IGNORED = Ledger("style", 4, excluded=Counts({ignored_by("*"): 3, FOR_NONE: 1}))
GENERIC = FAMILIES["generic"]
HEAD = {"config": configured(modules_to_save=["fc"]), "path": "fc"}
VERA = {"vera_lambda_d": (4,), "vera_lambda_b": (6,)}

Case = tuple[tuple[object, ...], str | tuple[str, ...] | None]

# Refusal -> what it is asked of, and how its answer begins; None where it lets that through.
CASES: dict[Callable[..., object], list[Case]] = {
    modules.name_stands_for_several: [
        ((named(lora("up"), "a_b.c", "a.b_c", "x"),), "its name may stand for a_b.c and for a.b_c"),
        ((named(lora("up"), "a_b.c"),), None),
        ((named(lora("up")),), None),
    ],
    modules.tensors_are_no_whole_set: [
        ((understood("up"),), "there is only the 'up' tensor, and 'down' is missing"),
        ((understood("up", "down"),), None),
    ],
    modules.magnitude_has_its_weight_beside_it: [
        (
            (Understood(named(lora("whole_weight", "dora_scale")), (KINDS["whole"],)),),
            "a magnitude beside the weight",
        ),
        ((understood("whole_weight"),), None),
        ((understood("up", "down", "dora_scale"),), None),
    ],
    modules.whole_tensor_is_not_announced: [
        ((understood("whole_weight"),), "a whole tensor that no modules_to_save announces"),
        ((understood("whole_weight", config=configured(), path="fc"),), "a whole tensor"),
        ((understood("whole_weight", **HEAD),), None),
        ((understood("whole_weight", config=configured(ensure_weight_tying=True), path="x", use=part()),), None),
        ((understood("whole_weight", "up", "down", config=configured(), path="fc"),), None),
        ((understood("up", "down"),), None),
    ],
    modules.scale_of_mlx_is_missing: [
        ((understood("lora_a", "lora_b"),), "MLX-LM's adapter_config.json is not there"),
        ((understood("lora_a", "lora_b", config=configured()),), None),
        ((understood("up", "down"),), None),
    ],
    modules.stack_of_experts_is_not_named: [
        ((Fitting(named(lora("up"), is_unnamed=True), (part(), part())),), "it fits several stacks of experts"),
        ((Fitting(named(lora("up"), is_unnamed=True), (part(),)),), None),
        ((Fitting(named(lora("up")), (part(), part())),), None),
    ],
    modules.name_means_two_tensors: [
        ((Fitting(named(lora("up")), (part(), part(key="x.weight"))),), ("fc may be fc.weight and x.weight of",)),
        ((Fitting(named(lora("up")), (part(), part("vae"))),), None),
        ((Fitting(named(lora("up")), ()),), None),
    ],
    modules.module_fits_several_components: [
        ((Fitting(named(lora("up")), (part(), part("vae"))),), ("fc fits model, vae", "Say which with components:")),
        ((Fitting(named(lora("up")), (part(),)),), None),
    ],
    modules.configuration_asks_for_other_shapes: [
        ((asked(configured(r=4), **LORA),), "its rank is 2, and adapter_config says 4"),
        ((asked(configured(), **LORA),), None),
    ],
    modules.magnitude_is_missing: [
        ((asked(configured(use_dora=True), **LORA),), "adapter_config says use_dora"),
        ((asked(configured(use_dora=True), **LORA, magnitude=(6,)),), None),
        ((asked(configured(use_dora=True), diff=(6, 5)),), None),
        ((asked(configured(), **LORA),), None),
    ],
    shapes.place_is_unclear: [
        ((part(unclear="nothing tells its order"),), "nothing tells its order"),
        ((part(),), None),
    ],
    shapes.number_is_several: [
        (((KINDS["lora"],), {**LORA, "alpha": (3,)}), "its alpha has the shape (3,)"),
        (((KINDS["lora"],), {**LORA, "alpha": (1, 1)}), None),
        (((KINDS["lora"],), LORA), None),
    ],
    shapes.one_layer_meets_all_experts: [
        ((trial("lora", stacked=True, **LORA),), "the base has all experts of a mixture there"),
        ((trial("lora", **LORA),), None),
        ((trial("lora", view(6, 5), stacked=True, **LORA),), None),
    ],
    shapes.parameter_is_not_there: [
        ((trial("lora", **LORA),), "the base's module has no weight"),
        ((trial("lora", view(6, 5), **LORA),), None),
    ],
    shapes.kind_asks_for_other_shapes: [
        ((trial("lora", view(6, 4), **LORA),), "its delta is 6 × 5"),
        ((trial("lora", view(6, 5), **LORA),), None),
        ((trial("lora", **LORA),), None),
    ],
    shapes.tensor_is_empty: [
        ((trial("lora", view(6, 5), up=(6, 2), down=(2, 0)),), "its down is empty: (2, 0)"),
        ((trial("lora", view(6, 5), up=(6, 0), down=(0, 5)),), None),
        ((trial("lora", view(6, 5), **LORA),), None),
    ],
    shapes.magnitude_measures_nothing: [
        ((trial("lora", view(6, 5), **LORA, dora_scale=(4, 1)),), "its DoRA magnitude has neither rows nor columns"),
        ((trial("lora", view(6, 5), **LORA, dora_scale=(6, 1)),), None),
        ((trial("lora", view(6, 5), **LORA),), None),
    ],
    programs.program_does_not_read_the_kind: [
        ((read("peft", "set_weight", set_weight=(6, 5)),), "PEFT does not read this form of set weight"),
        ((read("forge", "set_weight", set_weight=(6, 5)),), None),
    ],
    programs.program_has_no_law_of_lengths: [
        ((read("peft", "diff", diff=(6, 5), magnitude=(6,)),), "peft has no law of DoRA on"),
        ((read("peft", "diff", diff=(6, 5)),), None),
        ((read("peft", "lora", **LORA, magnitude=(6,)),), None),
    ],
    programs.program_does_not_read_the_magnitude: [
        ((read("comfyui", "lora", **LORA, magnitude=(6,)),), "ComfyUI does not read magnitudes of this spelling"),
        ((read("comfyui", "lora", **LORA, dora_scale=(6, 1)),), None),
        ((read("comfyui", "lora", **LORA),), None),
    ],
    programs.program_forgets_the_order_of_rows: [
        (
            (read("forge", "lora", SWAPPED, **LORA, dora_scale=(6, 1)),),
            "Forge swaps the halves of this module's change",
        ),
        ((read("forge", "lora", SWAPPED, **LORA),), None),
        ((read("lycoris", "lora", SWAPPED, **LORA, dora_scale=(6, 1)),), None),
        ((read("forge", "lora", **LORA, dora_scale=(6, 1)),), None),
    ],
    programs.program_fails_at_the_tensors: [
        ((read("comfyui", "lora", view(6, 5), **LORA, mid=(2, 2)),), "ComfyUI fails at Tucker cores"),
        ((read("comfyui", "lora", **LORA),), None),
    ],
    matrices.matrices_depend_on_the_placeless: [
        ((KINDS["vera"], VERA, Largest(6, 5, "x.q")), "its random matrices depend on x.q, which has no place"),
        ((KINDS["vera"], VERA, Largest(6, 5)), None),
        ((KINDS["vera"], {**VERA, "vera_A": (4, 5)}, Largest(6, 5, "x.q")), None),
    ],
    matrices.matrix_is_of_another_size: [
        ((KINDS["vera"], {**VERA, "vera_A": (4, 3)}, Largest(6, 5)), "its vera_A is (4, 3), and all its layers ask"),
        ((KINDS["vera"], {**VERA, "vera_A": (4, 5)}, Largest(6, 5)), None),
        ((KINDS["vera"], {**VERA, "vera_A": (4, 3)}, Largest(6, 5, "x.q")), None),
        ((KINDS["vera"], VERA, Largest(6, 5)), None),
    ],
    families.said_family_is_unknown: [
        (("fluks",), ("trained_on: no family is called 'fluks'; nearest: flux",)),
        (("generic",), ("trained_on: no family is called 'generic'",)),
        (("flux",), None),
        ((None,), None),
    ],
    families.modules_are_not_of_the_said_family: [
        (
            (FAMILIES["flux"], of_one("sd1"), ["b", "a.q"]),
            ("trained_on says Flux.1, and its modules are those of Stable Diffusion 1.x (such as a.q)",),
        ),
        ((FAMILIES["sd1"], of_one("sd1"), ["a.q"]), None),
        ((FAMILIES["flux"], of_one("sd1", is_text=True), ["a.q"]), None),
        ((FAMILIES["flux"], Evidence(), ["a.q"]), None),
        ((None, of_one("sd1"), ["a.q"]), None),
    ],
    families.lora_is_another_familys: [
        (
            (Strangers((FAMILIES["flux"],), "9 x"), BASE),
            (
                "is for Flux.1 (by 9 x); the base is of a family without a table (first tensor: fc.weight)",
                "To bake it there all the same, add to this LoRA: trained_on: flux",
            ),
        ),
        ((Strangers(), BASE), None),
        ((Strangers((FAMILIES["flux"],), "9 x"), BaseNames(KeyMap(FAMILIES["chroma"], TENSORS))), None),
    ],
    files.component_is_unknown: [
        (
            (entry(components=("unett",)), FAMILIES["sd1"]),
            ("no component is called 'unett'; nearest: unet", "The base"),
        ),
        ((entry(strength={"unett": 1.0}), FAMILIES["sd1"]), ("no component is called 'unett'",)),
        ((entry(strength={"clip": 1.0}), FAMILIES["sd1"]), ("no component is called 'clip'; write text_encoder",)),
        (
            (entry(strength={"strength_model": 1.0}), FAMILIES["flux"]),
            ("no component is called 'strength_model'; write transformer",),
        ),
        ((entry(components=("unett",)), None), ("no component is called 'unett'; nearest: unet",)),
        ((entry(components=("clip",)), None), ("no component is called 'clip'; write text_encoder",)),
        ((entry(components=("transformer",)), FAMILIES["sd1"]), None),
        ((entry(), FAMILIES["sd1"]), None),
    ],
    files.glob_ignores_nothing: [
        ((("*.k",), {"a.q": lora("up", name="a.q")}), ("ignore pattern '*.k' matches nothing in the file",)),
        (
            (("*.up",), {"a.q": lora("up", "down", name="a.q")}),
            ("ignore pattern '*.up' matches some tensors of a module alone, such as a.q.up", "Only whole modules"),
        ),
        (((), {"a.q": lora("up", name="a.q")}), None),
    ],
    files.file_is_no_lora: [
        (
            (opened({"lora_controlnet": (0,), "a.lora_up.weight": (4, 2)}), ()),
            ("is a Control-LoRA, not a LoRA", "It makes a ControlNet out of a UNet"),
        ),
        ((opened({"lora_controlnet": (0,), "a.lora_up.weight": (4, 2)}), {"lora_controlnet"}), None),
        ((opened({"a.lora_up.weight": (4, 2)}), ()), None),
        ((opened({"a.weight": (4, 2)}), ()), None),
    ],
    files.turns_cannot_be_told: [
        (
            (Turns(either=2, squares=2),),
            ("fan_in_fan_out is set and every weight is square", "lorabake has no table"),
        ),
        ((Turns(either=2, squares=1),), ("fan_in_fan_out is set and its tensors would fit either way",)),
        ((Turns(turned=1, either=2),), None),
        ((Turns(straight=1, either=2),), None),
        ((Turns(),), None),
    ],
    files.strength_forgets_the_component: [
        (
            ("unet",),
            ("it has tensors for unet, and its strength says nothing of them", "Add unet: 0 to its strength"),
        ),
    ],
    files.two_modules_change_one_tensor: [
        (("a", "b", "fc.weight"), ("a and b both change fc.weight", "A file that has one module under two names")),
    ],
    files.announced_tokens_are_missing: [
        ((configured(trainable_token_indices=[1]), [lora("up")]), ("adapter_config says trainable_token_indices",)),
        ((configured(trainable_token_indices=[1]), [lora("tokens")]), None),
        ((configured(), [lora("up")]), None),
        ((None, [lora("up")]), None),
    ],
    files.alpha_has_another_name: [
        (
            ({"x": [part()]}, [patch("fc", view(6, 5))]),
            ("x.alpha and fc are one module under two names", "Rename one"),
        ),
        (({"x": [part()]}, [patch("fc", view(6, 5), scale=1.0)]), None),
        (({"x": [part(key="other.weight")]}, [patch("fc", view(6, 5))]), None),
        (({}, [patch("fc", view(6, 5))]), None),
    ],
    files.block_pattern_takes_nothing: [
        ((["down.*"], {"up.*"}, {"up.q"}), ("blocks pattern 'down.*' matches no module",)),
        (
            (["up.*", "up.q"], {"up.*"}, {"up.q"}),
            ("blocks pattern 'up.q' matches only modules that a pattern before",),
        ),
        ((["up.*"], {"up.*"}, {"up.q"}), None),
        (([], set(), set()), None),
    ],
    files.file_has_no_tensors: [
        ((Ledger("style", 0), entry()), ("has no tensors, so there is nothing to bake",)),
        ((ALL, entry()), None),
    ],
    files.components_leave_nothing: [
        ((ALL, entry(components=("vae",))), ("all of its tensors are not in components: [vae]",)),
        ((IGNORED, entry(components=("vae",))), None),
    ],
    files.ignore_leaves_nothing: [
        ((IGNORED, entry(ignore=("*",))), ("ignore leaves nothing of it to bake",)),
        ((ALL, entry(ignore=("*",), components=("vae",))), ("ignore leaves nothing of it to bake",)),
        ((ALL, entry(ignore=("*",))), None),
        ((Ledger("style", 4, applied=4), entry(ignore=("*",))), None),
    ],
}

ALWAYS = {files.strength_forgets_the_component, files.two_modules_change_one_tensor}
"""What is only asked where it has to be refused."""


def refusals_of(folder: object) -> set[Callable[..., object]]:
    """Find all functions whose first sentence says what they refuse."""
    path = str(Path(inspect.getfile(folder)).parent)  # type: ignore[arg-type]
    files = [
        importlib.import_module(f"lorabake.matching.refusals.{each.name}") for each in pkgutil.iter_modules([path])
    ]
    return {
        function
        for file in files
        for _, function in inspect.getmembers(file, inspect.isfunction)
        if function.__module__ == file.__name__ and (function.__doc__ or "").startswith("Refuse ")
    }


def test_every_refusal_has_cases_of_both_sorts() -> None:
    assert refusals_of(refusals) == CASES.keys()
    for refusal, cases in CASES.items():
        assert any(answer is not None for _, answer in cases), refusal
        assert refusal in ALWAYS or any(answer is None for _, answer in cases), refusal


@pytest.mark.parametrize(
    ("refusal", "records", "answer"),
    [
        pytest.param(refusal, records, answer, id=f"{refusal.__name__}-{number}")
        for refusal, cases in CASES.items()
        for number, (records, answer) in enumerate(cases)
    ],
)
def test_a_refusal_answers(
    refusal: Callable[..., object], records: tuple[object, ...], answer: str | tuple[str, ...] | None
) -> None:
    said = refusal(*records)
    assert said == refusal(*records), "a question changed something"
    if answer is None:
        assert said is None
    elif isinstance(answer, str):
        assert isinstance(said, str)
        assert said.startswith(answer)
    else:
        assert isinstance(said, tuple)
        assert len(said) >= len(answer)
        for line, start in zip(said, answer, strict=False):
            assert line.startswith(start), line


TABLES = {
    modules: ("OF_ITS_NAME", "OF_ITS_TENSORS", "OF_ITS_PLACES", "OF_SEVERAL_PLACES", "OF_ITS_CONFIGURATION"),
    shapes: ("OF_THE_PARAMETER", "OF_SHAPES"),
    programs: ("OF_PROGRAMS",),
}


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.__name__)
def test_every_refusal_of_a_module_is_asked(file: object) -> None:
    asked = [refusal for name in TABLES[file] for refusal in getattr(file, name)]  # type: ignore[index]
    apart = {shapes.place_is_unclear, shapes.number_is_several}  # asked once for all kinds
    own = {refusal for refusal in CASES if refusal.__module__ == file.__name__}  # type: ignore[attr-defined]
    assert {*asked} == own - apart
    assert len({*asked}) == len(asked)


def test_what_shapes_refuse_is_told_with_the_sizes_of_both_sides() -> None:
    lora_kind: Kind = KINDS["lora"]
    fault = shapes.fault_of((lora_kind,), {"up": (6, 2), "down": (2, 4)}, part())
    assert fault == (
        "its delta is 6 × 4; the base's weight is 6 × 5 (same outputs, other inputs: another version of the model?); "
        "its tensors: down (2, 4), up (6, 2)"
    )
    assert shapes.fault_of((lora_kind,), LORA, part()) is None


def test_an_answer_of_lines_ends_the_matching_in_the_loras_name() -> None:
    files.refuse("style", None)
    with pytest.raises(MatchError) as caught:
        files.refuse("style", ("has no tensors", "More."))
    assert caught.value.lines == ("LoRA 'style': has no tensors", "More.")
