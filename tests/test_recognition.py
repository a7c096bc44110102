"""Whose LoRA is it: what tells families apart, which of them exchange LoRAs, and what a recipe may say of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch

import lorabake
from lorabake.adapters import shared, suffixes
from lorabake.architectures import architectures, released
from lorabake.errors import MatchError
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.names import pattern_of
from lorabake.keymap.slots import sort_tensors
from lorabake.matching.complaint import CHOOSE
from lorabake.matching.ledger import Ledger
from lorabake.matching.names import BaseNames
from lorabake.recipe import Recipe
from lorabake.sources.family import GENERIC, identify
from lorabake.sources.recognition import Evidence, is_text, kinship, recognise
from lorabake.verification import embedded_recipe
from tests import builders as b
from tests.documents import inspect
from tests.released import HEADERS, SIZES, expanded, lines, made
from tests.tables import infos, load_table, names
from tests.test_matching import Shapes, low_rank, matched, source

FAMILIES = {each.name: each for each in architectures()}
NETWORKS = [name for name in HEADERS if not is_text(FAMILIES[name])]

# Families whose attentions have equal names, shapes and numbers, all of them or in one of their sizes.
ALIKE = {("cogview4", "cosmos1")}
ALIKE_IN_A_SIZE = {
    ("pixart", "sana"), ("pixart", "sana_video"), ("sana", "pixart"), ("ltx", "ltx2"), ("cosmos", "cosmos1"),
    ("cosmos1", "cosmos"),
}  # fmt: skip

ALL, ATTENTION = r"", r"(?:attn|attention)[^.]*\.(?!.*(?:norm|mod))"


@cache
def shapes_of(family: str, part: str = ALL, header: int = -1) -> Shapes:
    """List a LoRA of all modules of a family's model whose names have a part: PEFT's tensors, the header's names."""
    return lora_of(expanded(family)[header], part)


def lora_of(key_map: KeyMap, part: str = ALL) -> Shapes:
    component = key_map.architecture.components[0].name
    own = key_map.modules_in(component, key_map.placed[component][0].name)
    found: Shapes = {}
    for name, module in own.items():
        view = module.views.get("weight")
        if view is not None and len(view.shape) > 1 and re.search(part, name):
            found[f"{name}.lora_A.weight"] = (4, *view.shape[1:])
            found[f"{name}.lora_B.weight"] = (view.shape[0], 4, *(1 for _ in view.shape[2:]))
    return found


def evidence_of(shapes: Shapes) -> Evidence:
    return recognise(sort_tensors(infos(dict(shapes)).values(), suffixes(), shared()))


def names_of(families: Iterable[object]) -> set[str]:
    return {str(getattr(each, "name", each)) for each in families}


@cache
def base(family: str) -> BaseNames:
    tensors = expanded(family)[-1].tensors
    return BaseNames(KeyMap.expand(identify(tensors), tensors))


def bake(shapes: Shapes, on: str, **entry: object) -> Ledger:
    return matched(base(on), source(infos(dict(shapes)), **entry))[1]  # type: ignore[arg-type]


def refusal(shapes: Shapes, on: str, **entry: object) -> str:
    with pytest.raises(MatchError) as caught:
        bake(shapes, on, **entry)
    return str(caught.value)


# -- the lists -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", HEADERS)
def test_the_lists_are_those_of_the_headers(family: str) -> None:
    if family in SIZES:
        pytest.importorskip("diffusers")
    assert released()[family] == lines(family), "write them anew: python -m tests.released"


def test_every_family_is_recognised_by_a_list_or_by_names() -> None:
    assert released().keys() == HEADERS.keys()
    without = [each for each in architectures() if each.name not in HEADERS and each.name != GENERIC]
    for each in without:
        is_copy = all(part.name == "controlnet" for part in each.components) and each.components
        has_rows = any(part.rows for part in each.components)
        assert is_copy or each.names or has_rows, each.name


# -- every family's LoRA, and every family's base -----------------------------------------------------------------


@pytest.mark.parametrize("family", NETWORKS)
@pytest.mark.parametrize("part", [ALL, ATTENTION], ids=["all", "attention"])
def test_a_whole_lora_is_of_its_family_and_of_no_other_but_its_kin(family: str, part: str) -> None:
    for header in range(len(HEADERS[family])):
        shapes = shapes_of(family, part, header)
        if not shapes:
            continue
        evidence = evidence_of(shapes)
        assert family in names_of(evidence.whole)
        assert family in names_of(evidence.filled)
        for other in evidence.filled:
            is_kin = other.name == family or kinship(other, FAMILIES[family])
            assert is_kin or (family, other.name) in ALIKE | ALIKE_IN_A_SIZE, other.name


# Families that have names in common with others.
SHARING = [
    "flux", "chroma", "bria_fibo", "hunyuan_video", "hunyuan_image", "qwen_image", "sd3", "auraflow", "flux3",
    "wan", "helios", "sdxl", "kolors", "sd2", "svd", "text_to_video", "sana", "sana_video", "cosmos", "anima",
    "cosmos1", "cogview4", "ltx", "ltx2", "lumina2", "z_image",
]  # fmt: skip


@pytest.mark.parametrize("family", NETWORKS)
def test_a_lora_bakes_on_its_own_family_and_is_refused_by_all_but_its_kin(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BaseNames, "nearest", lambda *_: "")
    shapes = shapes_of(family, ATTENTION) or shapes_of(family)
    title = FAMILIES[family].title
    for on in SHARING:
        other = FAMILIES[on]
        if on == family:
            assert bake(shapes, on).applied == len(shapes)
            continue
        if not any(key.removesuffix(".lora_A.weight") in base(on).spelled for key in shapes):
            assert refusal(dict([*shapes.items()][:2]), on)
            continue
        said = bake_or_refusal(shapes, on)
        if kinship(other, FAMILIES[family]):
            assert not said.startswith("LoRA 'style' is for "), (on, said)
        elif (family, on) in ALIKE:
            assert said == f"it may as well be a LoRA of {title}"
        elif (family, on) in ALIKE_IN_A_SIZE:  # the base is of another size
            assert said.startswith("LoRA 'style'"), (on, said)
        else:
            first = said.splitlines()[0]
            assert first.startswith("LoRA 'style' is for "), (on, said)
            assert title in first
            assert f"the base is {other.title}, " in first


def bake_or_refusal(shapes: Shapes, on: str) -> str:
    try:
        return "\n".join(note for note in bake(shapes, on).notes if "no alpha" not in note)
    except MatchError as error:
        return str(error)


# -- other sizes ---------------------------------------------------------------------------------------------------


@cache
def sized(family: str) -> dict[str, BaseNames]:
    pytest.importorskip("diffusers")
    return {
        size: BaseNames(KeyMap.expand(identify(each.tensors), each.tensors)) for size, each in made(family).items()
    }


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("part", [ALL, ATTENTION], ids=["all", "attention"])
def test_a_lora_of_any_released_size_is_of_its_family(family: str, part: str) -> None:
    for size, matcher in sized(family).items():
        shapes = lora_of(matcher.key_map, part)
        if not shapes:
            continue
        evidence = evidence_of(shapes)
        assert family in names_of(evidence.filled), size
        for other in evidence.filled:
            is_kin = other.name == family or kinship(other, FAMILIES[family])
            assert is_kin or (family, other.name) in ALIKE | ALIKE_IN_A_SIZE, (size, other.name)
        _, ledger = matched(matcher, source(infos(dict(shapes))))
        assert (ledger.applied, ledger.family) == (len(shapes), FAMILIES[family].title), size


# Parts of a network that other families have under the same names, in some size with the same shapes.
LIKE_OTHERS = [
    ("cogvideox", "5B", r"attn1\.to_", "mochi"),
    ("flux2", "klein 4B", r"^transformer_blocks.*attn\.to_", "flux"),
    ("ltx", "13B", r"attn[12]\.to_", "ltx2"),
    ("sana", "600M", r"attn[12]\.to_", "pixart"),
]


@pytest.mark.parametrize(("family", "size", "part", "on"), LIKE_OTHERS)
def test_a_lora_of_another_size_does_not_go_unnoticed_onto_another_family(
    family: str, size: str, part: str, on: str
) -> None:
    shapes = lora_of(sized(family)[size].key_map, part)
    assert all(key.partition(".lora_")[0] in base(on).spelled for key in shapes)
    said = bake_or_refusal(shapes, on)
    assert FAMILIES[family].title in said
    assert said.startswith(("LoRA 'style' is for ", "it may", "its modules"))


@pytest.mark.parametrize("blocks", [range(45), range(10), range(38, 48)], ids=["longer", "first", "last"])
def test_a_family_that_may_have_a_size_which_nobody_listed_is_named(blocks: range) -> None:
    """CogVideoX and Mochi have these names, and CogVideoX has the shape in no model of so many blocks."""
    shapes: Shapes = {}
    for number in blocks:
        shapes |= low_rank(f"transformer_blocks.{number}.attn1.to_q", 3072, 3072, alpha=False)
    evidence = evidence_of(shapes)
    assert {"mochi", "cogvideox"} <= names_of(evidence.families)
    (note,) = (note for note in bake(shapes, "mochi").notes if "alpha" not in note)
    assert note.startswith("its modules do not tell whose it is: it may as well be a LoRA of ")
    assert "CogVideoX" in note


def test_a_size_that_nobody_listed_is_not_called_another_familys() -> None:
    """PixArt has this width, and CogVideoX the names alone."""
    shapes: Shapes = {}
    for number in range(20):
        shapes |= low_rank(f"transformer_blocks.{number}.attn1.to_q", 1152, 1152, alpha=False)
    assert {"pixart", "cogvideox"} <= names_of(evidence_of(shapes).families)
    assert refusal(shapes, "cogvideox").startswith(
        "LoRA 'style': 20 of 20 modules have no place on the base (CogVideoX"
    )


# -- blocks that are missing -----------------------------------------------------------------------------------------


def without(shapes: Shapes, *stems: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not key.startswith(stems)}


@pytest.mark.parametrize(
    "missing",
    [
        ("transformer_blocks.18.",),
        ("single_transformer_blocks.37.",),
        ("transformer_blocks.5.", "single_transformer_blocks.11.", "single_transformer_blocks.12."),
        tuple(f"single_transformer_blocks.{i}." for i in range(38)),
        tuple(f"transformer_blocks.{i}." for i in range(19)),
    ],
    ids=["last", "last single", "inner", "all single", "all double"],
)
def test_a_lora_that_lacks_some_blocks_is_still_told_from_a_longer_family(missing: tuple[str, ...]) -> None:
    shapes = without(shapes_of("flux", r"attn\.to_"), *missing)
    told = refusal(shapes, "hunyuan_video").splitlines()[0]
    assert told.startswith("LoRA 'style' is for ")
    assert "Flux.1" in told
    ledger = bake(shapes, "flux")
    assert (ledger.applied, ledger.family) == (len(shapes), "Flux.1")
    assert not any("HunyuanVideo" in note for note in ledger.notes)


@pytest.mark.parametrize(
    "family", ["flux", "hunyuan_video", "wan", "ltx", "qwen_image", "chroma", "bria_fibo", "sdxl"]
)
@pytest.mark.parametrize("blocks", [range(1), range(5), range(8), range(10), range(3, 9), range(2, 60)], ids=str)
def test_blocks_that_were_chosen_for_training_bake_on_their_own_base(family: str, blocks: range) -> None:
    number = re.compile(r"(?:^|_)(?:block|blocks)\.(\d+)\.")
    shapes = {
        key: shape
        for key, shape in shapes_of(family, ATTENTION).items()
        if (found := number.search(key)) and int(found[1]) in blocks
    }
    assert not shapes or bake(shapes, family).applied == len(shapes)


@pytest.mark.parametrize("table", names("lora"))
def test_a_published_lora_is_not_taken_for_another_familys(table: str) -> None:
    """What is known of these files: the family is in their names or in their READMEs."""
    known: dict[str, tuple[str, ...]] = {
        "sd1": ("arenasys_lora_v1_unet", "real_cloud", "real_difusor", "stripped_shinkai", "real_lycoris"),
        "flux": ("invoke_flux", "stripped_stripped"),
        "anima": ("invoke_anima",),
        "qwen_image": ("invoke_qwen",),
    }  # fmt: skip
    found = recognise(sort_tensors(load_table(table).values(), suffixes(), shared()))
    for family, tables in known.items():
        if table.startswith(tables):
            assert family in names_of(found.families)


# -- which of two --------------------------------------------------------------------------------------------------


def test_the_number_of_blocks_tells_flux_from_hunyuan_video() -> None:
    flux = shapes_of("flux", r"attn\.|ff\.|proj_")
    seen_by = "38 single_transformer_blocks.N.proj_mlp, of which the base has 40"
    assert refusal(flux, "hunyuan_video").splitlines() == [
        f"LoRA 'style' is for Flux.1 or Chroma (by {seen_by}); "
        "the base is HunyuanVideo, diffusers layout (by transformer_blocks.0.attn.add_q_proj.weight)",
        "To bake it there all the same, add to this LoRA: trained_on: flux",
        CHOOSE,
    ]
    hunyuan = {
        key: shape for key, shape in shapes_of("hunyuan_video", r"attn\.|ff\.").items() if "refiner" not in key
    }
    assert bake(hunyuan, "hunyuan_video").family == "HunyuanVideo"
    assert "is for HunyuanVideo (by " in refusal(hunyuan, "flux")
    assert evidence_of(hunyuan).title == "HunyuanVideo"


def test_the_blocks_of_the_base_at_hand_count_whatever_its_family_was_released_with() -> None:
    """A pruned Flux.1 has as many blocks as Bria FIBO: its own LoRA is not taken for the other's."""
    number = re.compile(r"\btransformer_blocks\.(\d+)\.")
    tensors = {
        key: info for key, info in expanded("flux")[0].tensors.items() if int((number.match(key) or [0, 0])[1]) < 8
    }
    pruned = BaseNames(KeyMap.expand(identify(tensors), tensors))
    shapes = {
        key: shape
        for key, shape in shapes_of("flux", r"attn\.to_").items()
        if int((number.match(key) or [0, 0])[1]) < 8
    }
    assert evidence_of(shapes).title == "Bria FIBO"
    _, ledger = matched(pruned, source(infos(dict(shapes))))
    assert ledger.applied == len(shapes)
    assert "it may as well be a LoRA of Bria FIBO" in ledger.notes


@pytest.mark.parametrize("family", ["ltx", "flux", "wan", "sdxl", "cogview4", "chroma", "anima", "sana"])
def test_no_module_alone_is_refused_by_its_own_family(family: str) -> None:
    """What one family has once may be one of many in another."""
    shapes = shapes_of(family)
    sorts: dict[str, str] = {}
    for key in shapes:
        if key.endswith(".lora_A.weight"):
            sorts.setdefault(pattern_of(key), key.removesuffix(".lora_A.weight"))
    for module in sorts.values():
        alone = {key: shapes[key] for key in (f"{module}.lora_A.weight", f"{module}.lora_B.weight")}
        assert bake(alone, family).applied == 2


def test_a_few_blocks_do_not_tell_whose_they_are() -> None:
    small = {key: shape for key, shape in shapes_of("flux").items() if "blocks.12.attn.to_" in key}
    for on in ("flux", "hunyuan_video"):
        (note,) = (note for note in bake(small, on).notes if "do not tell" in note)
        assert note.startswith("its modules do not tell whose it is: it may as well be a LoRA of ")
    told = bake(small, "hunyuan_video", metadata={"ss_base_model_version": "flux1"}).notes
    assert any(note.endswith("(its metadata says ss_base_model_version: flux1)") for note in told)
    assert not any("do not tell" in note for note in bake(small, "flux", trained_on="flux").notes)


def test_metadata_does_not_decide() -> None:
    metadata = {"ss_base_model_version": "sd_1.5", "modelspec.architecture": "stable-diffusion-v1/lora"}
    flux = shapes_of("flux", r"attn\.|ff\.|proj_")
    assert bake(flux, "flux", metadata=metadata).family == "Flux.1"
    assert "is for Flux.1" in refusal(flux, "hunyuan_video", metadata={"ss_base_model_version": "hunyuan_video"})


def test_kin_take_each_others_loras_and_the_ledger_says_why() -> None:
    flux = shapes_of("flux", r"attn\.to_")
    (note,) = (note for note in bake(flux, "chroma").notes if "alpha" not in note)
    assert note == f"it may as well be a LoRA of Flux.1: {FAMILIES['chroma'].kin[0].why}"
    assert not any("may as well" in note for note in bake(flux, "flux").notes)


def test_kin_that_can_be_told_apart_take_what_both_have() -> None:
    """A LoRA of Flux.1's modulation layers, too, is not Chroma's: what Chroma lacks has to be ignored by name."""
    flux = shapes_of("flux", r"blocks\.\d+\.")
    message = refusal(flux, "chroma")
    line = message.splitlines()[-1].removeprefix("To bake without them, add to this LoRA: ")
    assert line == 'ignore: ["*.norm1.linear", "*.norm1_context.linear", "*.norm.linear"]'
    ledger = bake(flux, "chroma", ignore=tuple(json.loads(line.removeprefix("ignore: "))))
    assert f"a LoRA of Flux.1 on Chroma: {FAMILIES['chroma'].kin[0].why}" in ledger.notes


def test_every_kin_has_a_family_and_a_line_in_the_documentation() -> None:
    page = (Path(__file__).parent.parent / "docs" / "families.md").read_text(encoding="utf-8")
    for each in architectures():
        for kin in each.kin:
            assert f"| {FAMILIES[kin.family].title} | {each.title} | {kin.why} |" in page


# -- text encoders ---------------------------------------------------------------------------------------------------

T5 = "text_encoders.t5xxl.transformer.encoder.block.{}.layer.0.SelfAttention.q"
CLIP = "lora_te1_text_model_encoder_layers_{}_mlp_fc1"


def test_text_encoders_do_not_make_a_language_model_of_a_lora() -> None:
    flux = dict([*shapes_of("flux", r"attn\.to_").items()][:40])
    text = {key: shape for i in range(24) for key, shape in low_rank(T5.format(i), 4096, 4096, alpha=False).items()}
    text |= {key: shape for i in range(12) for key, shape in low_rank(CLIP.format(i), 3072, 768).items()}
    assert names_of(evidence_of(flux | text).whole) == names_of(evidence_of(flux).whole)
    assert evidence_of(text).title == "a language model"
    message = refusal(flux | text, "flux")
    assert message.splitlines()[0].startswith("LoRA 'style': 36 of 56 modules have no place on the base (Flux.1")
    assert message.splitlines()[-1] == "To bake without them, add to this LoRA: components: [transformer]"
    assert bake(flux | text, "flux", components=("transformer",)).applied == len(flux)


@pytest.mark.parametrize(
    ("start", "part"),
    [("lora_te2_", "text_encoder_2"), ("text_encoder_2.", "text_encoder_2"), ("lora_te3_", "text_encoder_2")],
)
def test_a_language_model_that_is_a_text_encoder_is_named_as_such(start: str, part: str) -> None:
    name = "encoder.block.{}.layer.0.SelfAttention.q"
    name = start + (name if start.endswith(".") else name.replace(".", "_"))
    text = {key: shape for i in range(24) for key, shape in low_rank(name.format(i), 4096, 4096, alpha=False).items()}
    first, what, advice = refusal(text, "flux").splitlines()
    assert first.startswith(f"LoRA 'style' is for a text encoder, a language model (by {name.format(0)} (2, 4096));")
    assert part in what
    assert f"components: [{part}]" in advice


def test_inspect_names_a_text_encoder_as_such(tmp_path: Path) -> None:
    tensors = {"lora_te2_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight": torch.zeros(4, 64)}
    tensors |= {"lora_te2_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight": torch.zeros(64, 4)}
    b.save(tmp_path / "lora.safetensors", tensors)
    assert inspect(tmp_path / "lora.safetensors")["family_title"] == "a text encoder, a language model"


def test_the_family_is_said_before_parts_that_have_no_place() -> None:
    """Leaving them out would lead to the next refusal."""
    flux = shapes_of("flux", r"attn\.to_")
    text = {key: shape for i in range(12) for key, shape in low_rank(CLIP.format(i), 3072, 768).items()}
    told = refusal(flux | text, "hunyuan_video")
    assert told.startswith("LoRA 'style' is for Flux.1 or Chroma (by 38 ")
    assert "components" not in told


def test_the_nearest_module_is_one_of_the_component_that_a_name_names() -> None:
    flux = shapes_of("flux", r"attn\.to_")
    query = "lora_te1_text_model_encoder_layers_{}_self_attn_q_proj"
    text = {key: shape for i in range(12) for key, shape in low_rank(query.format(i), 768, 768).items()}
    assert "nearest" not in refusal(flux | text, "flux")
    wrong = low_rank("lora_unet_double_blocks_0_img_attn_qkvv", 9216, 3072)
    assert "; nearest: lora_unet_double_blocks_0_img_attn_qkv" in refusal(flux | wrong, "flux")


def test_a_text_encoders_lora_is_of_no_one_family() -> None:
    clip = {key: shape for i in range(12) for key, shape in low_rank(CLIP.format(i), 3072, 768).items()}
    assert evidence_of(clip).title == "CLIP text encoder"
    assert "is for CLIP text encoder" in refusal(clip, "flux")


# -- what the recipe says ------------------------------------------------------------


def test_the_recipe_may_say_what_a_lora_was_trained_on() -> None:
    flux = shapes_of("flux", r"attn\.|ff\.|proj_")
    ledger = bake(flux, "hunyuan_video", trained_on="flux")
    assert (ledger.applied, ledger.family) == (len(flux), "Flux.1")
    assert "a LoRA of Flux.1 on HunyuanVideo, as the recipe says" in ledger.notes
    assert (
        "a LoRA of HunyuanVideo, as the recipe says" in bake(flux, "hunyuan_video", trained_on="hunyuan_video").notes
    )


@pytest.mark.parametrize(
    ("trained_on", "words"),
    [
        ("fluks", "trained_on: no family is called 'fluks'; nearest: flux"),
        ("generic", "trained_on: no family is called 'generic'"),
        ("sdxl", "trained_on says Stable Diffusion XL, and its modules are those of Chroma"),
        ("bria_fibo", "trained_on says Bria FIBO, and its modules are those of Chroma"),
    ],
)
def test_the_recipe_cannot_say_what_the_modules_deny(trained_on: str, words: str) -> None:
    message = refusal(shapes_of("chroma", r"attn\.to_|distilled"), "hunyuan_video", trained_on=trained_on)
    assert words in message


def test_what_was_said_is_in_the_recipe_that_a_bake_carries(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.zeros(6, 5), "other.weight": torch.zeros(4, 4)})
    b.kohya(tmp_path / "lora.safetensors", {"lora_unet_fc": b.lora((6, 5)), "lora_unet_gone": b.lora((6, 5))})
    said: dict[str, object] = {"path": "lora.safetensors", "ignore": ["*_gone", "*_gon?"], "components": ["model"]}
    recipe = b.recipe(tmp_path, loras=[{**said, "trained_on": "flux"}])
    out = b.run(recipe).path
    read: Recipe = embedded_recipe(out)
    assert (read.loras[0].ignore, read.loras[0].trained_on) == (("*_gon?", "*_gone"), "flux")
    assert (read.loras[0].components, read.normal_form()) == (("model",), lorabake.load_recipe(recipe).normal_form())
    assert "ignore" not in str(lorabake.load_recipe(b.recipe(tmp_path, loras=["lora.safetensors"])).normal_form())


# -- prefixes that are not known ------------------------------------------------------------


def flattened(prefix: str, modules: dict[str, tuple[int, int]]) -> Shapes:
    found: Shapes = {}
    for name, (rows, columns) in modules.items():
        found |= low_rank(prefix + name.replace(".", "_"), rows, columns)
    return found


HUNYUAN = {
    f"double_blocks.{i}.{name}": shape
    for i in range(20)
    for name, shape in {"img_attn_qkv": (9216, 3072), "img_mlp.fc1": (12288, 3072)}.items()
}


@pytest.mark.parametrize(
    ("prefix", "strange"),
    [("Hunyuan_video_I2V_lora_",) * 2, ("my.own.lora.",) * 2, ("x_lora_unet_", "x_")],
)
def test_an_unknown_prefix_before_the_bases_names_is_read_over(prefix: str, strange: str) -> None:
    shapes = flattened(prefix, HUNYUAN)
    ledger = bake(shapes, "hunyuan_video")
    assert (ledger.applied, ledger.family) == (len(shapes), "HunyuanVideo")
    assert f"a prefix that is not known stands before 40 names: {strange!r}" in ledger.notes
    assert "HunyuanVideo" in str(evidence_of(shapes).title)
    assert "Flux" not in str(evidence_of(shapes).title)


def test_an_unknown_prefix_before_some_names_alone_is_said() -> None:
    shapes = flattened("strange_", HUNYUAN) | low_rank("strange_nothing", 8, 8)
    lines_ = refusal(shapes, "hunyuan_video").splitlines()
    assert lines_[0].startswith("LoRA 'style': 41 of 41 modules have no place")
    assert "    40 of them have a name of the base behind a prefix that is not known: 'strange_'" in lines_


@pytest.mark.parametrize("prefix", ["text_encoder.", "lora_te1_"])
def test_a_prefix_that_names_another_component_is_not_read_over(prefix: str) -> None:
    refusal(
        {f"{prefix}{key}": shape for key, shape in shapes_of("hunyuan_video", r"attn\.").items()}, "hunyuan_video"
    )


def test_no_prefix_is_read_over_where_other_modules_need_none() -> None:
    """A head beside the network may have the name of one of the network's modules."""
    own = shapes_of("flux", r"^proj_out")
    stray = {f"reward.{key}": shape for key, shape in shapes_of("flux", r"^x_embedder").items()}
    assert "reward.x_embedder ×1" in refusal(own | stray, "flux")


# -- inspect ------------------------------------------------------------


def test_inspect_names_all_families_that_a_lora_could_be_of(tmp_path: Path) -> None:
    tensors = {
        key: torch.zeros(shape) for key, shape in shapes_of("flux").items() if "transformer_blocks.7.attn.to_q" in key
    }
    b.save(tmp_path / "lora.safetensors", tensors)
    told = str(inspect(tmp_path / "lora.safetensors")["family_title"])
    assert "Flux.1" in told
    assert "HunyuanVideo" in told
