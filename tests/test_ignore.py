"""`ignore`: what a recipe leaves out of a LoRA by name, of any sort, and the line that an error offers."""

from __future__ import annotations

import time

import pytest
import yaml

from lorabake.errors import MatchError
from lorabake.matching.ledger import Ledger
from lorabake.matching.leftovers import line_for
from tests.tables import load_metadata, load_table
from tests.test_matching import SD15, Shapes, low_rank, match, matched, matcher, peft, refusal, source

OFFER = "To bake without them, add to this LoRA: "
BASE: Shapes = {f"blocks.{i}.{name}.weight": (4, 4) for i in range(3) for name in ("attn.q", "attn.k", "fc")}
GOOD = {k: v for i in range(3) for k, v in low_rank(f"blocks.{i}.attn.q", 4, 4).items()}

LEFT: dict[str, Shapes] = {
    "a module that the base lacks": {
        k: v for i in range(3) for k, v in low_rank(f"blocks.{i}.attn.k_img", 4, 4).items()
    },
    "one beside the blocks": low_rank("time_embed.guidance.linear_1", 4, 4) | low_rank("reward_head", 1, 4),
    "blocks that the base lacks": {k: v for i in (3, 4, 11) for k, v in low_rank(f"blocks.{i}.attn.q", 4, 4).items()},
    "one block's module": low_rank("blocks.7.attn.q", 4, 4),
    "a misfit": {k: v for i in range(3) for k, v in low_rank(f"blocks.{i}.fc", 8, 4).items()},
    "a misfit in one block": low_rank("blocks.1.attn.k", 8, 4),
    "half a module": {"blocks.1.fc.lora_up.weight": (4, 2)},
    "a whole tensor": {"blocks.1.fc.weight": (4, 4)},
    "a tensor of no known form": {"global_step": (), "mystery.something": (3,)},
    "a tensor with the signs of a glob": {"what[0]?.*": (3,)},
    "a kind that is not supported": {"blocks.0.fc.lambda_layer": (2, 2), "blocks.0.fc.oft_blocks.4": (2, 2)},
    "several of these": {"global_step": (), **low_rank("blocks.1.fc", 8, 4), **low_rank("blocks.0.attn.v", 4, 4)},
}  # fmt: skip


def offered(message: str) -> dict[str, object]:
    line = message.splitlines()[-1]
    assert line.startswith(OFFER), message
    entry: dict[str, object] = yaml.safe_load(line.removeprefix(OFFER))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


@pytest.mark.parametrize("names", ["dotted", "flattened"])
@pytest.mark.parametrize("sort", LEFT)
def test_the_line_that_an_error_offers_leaves_out_what_has_no_place(sort: str, names: str) -> None:
    def named(shapes: Shapes) -> Shapes:
        if names == "dotted":
            return shapes
        split = {key: key.rsplit(".", 1 + (".lora_" in key)) for key in shapes}
        return {
            (f"lora_unet_{parts[0].replace('.', '_')}.{'.'.join(parts[1:])}" if len(parts) > 1 else key): shapes[key]
            for key, parts in split.items()
        }

    shapes = named(GOOD) | named(LEFT[sort])
    entry = offered(refusal(shapes, BASE))
    patches, ledger = match(shapes, BASE, **entry)
    assert [patch.kind.name for patch in patches] == ["lora"] * 3
    assert ledger.applied == len(GOOD)
    assert sum(ledger.excluded.values()) == len(LEFT[sort])
    assert set(ledger.excluded) == {f"ignored by the recipe: {glob!r}" for glob in entry["ignore"]}  # type: ignore[union-attr]


def test_the_line_is_as_narrow_as_the_modules_it_leaves_out() -> None:
    shapes = GOOD | LEFT["a module that the base lacks"] | LEFT["one beside the blocks"]
    assert offered(refusal(shapes, BASE)) == {
        "ignore": ("*.attn.k_img", "time_embed.guidance.linear_1", "reward_head")
    }
    assert offered(refusal(GOOD | LEFT["blocks that the base lacks"], BASE)) == {
        "ignore": ("blocks.3.*", "blocks.4.*", "blocks.11.attn.q")
    }


def test_the_line_keeps_what_is_ignored_already() -> None:
    shapes = GOOD | low_rank("reward_head", 1, 4) | low_rank("value_head", 1, 4)
    entry = offered(refusal(shapes, BASE, ignore=("reward_*",)))
    assert entry == {"ignore": ("reward_*", "value_head")}
    assert match(shapes, BASE, **entry)[1].applied == len(GOOD)


def test_no_line_is_offered_where_nothing_would_be_left() -> None:
    assert OFFER not in refusal(low_rank("blocks.0.attn.v", 4, 4), BASE)
    many = {k: v for i in range(40) for k, v in low_rank(f"blocks.0.attn.{chr(97 + i % 26)}{i}", 4, 4).items()}
    assert OFFER not in refusal(GOOD | many, BASE)


def test_a_component_that_the_base_lacks_is_left_out_by_components() -> None:
    tensors = load_table("stripped_shinkai_makoto_offset")
    with pytest.raises(MatchError) as caught:
        matched(matcher("diffusers_sd15_unet"), source(tensors))
    entry = offered(str(caught.value))
    assert entry == {"components": ("unet",)}
    _, ledger = matched(matcher("diffusers_sd15_unet"), source(tensors, **entry))
    assert ledger.applied == 576


# -- what a glob matches ----------------------------------------------------------------------------------------

TE = low_rank("lora_te_text_model_encoder_layers_0_mlp_fc1", 3072, 768)
Q = low_rank("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, 320)


def left_out(shapes: Shapes, base: Shapes | str, *globs: str) -> tuple[int, dict[str, int]]:
    ledger: Ledger = match(shapes, base, ignore=globs)[1]
    assert ledger.is_balanced
    return ledger.applied, dict(ledger.excluded)


@pytest.mark.parametrize(
    "glob",
    [
        "lora_unet_down_*",  # the name in the file
        "*_attn1_to_q",
        "down_blocks.0.*",  # the base's names, of either layout
        "input_blocks.1.1.*",
        "unet.down_blocks.*",
        "lora_unet_down_*.*",  # the keys of its tensors
    ],
)
def test_a_glob_may_use_the_files_names_or_the_bases(glob: str) -> None:
    assert left_out(TE | Q, SD15, glob) == (3, {f"ignored by the recipe: {glob!r}": 3})


def test_each_tensor_is_counted_by_the_first_glob_that_matches() -> None:
    shapes = GOOD | low_rank("head.0", 4, 4) | low_rank("head.1", 4, 4)
    assert left_out(shapes, BASE, "head.1", "head.*", "head.?") == (
        len(GOOD),
        {"ignored by the recipe: 'head.1'": 3, "ignored by the recipe: 'head.*'": 3},
    )


def test_what_is_ignored_needs_no_strength_and_no_component() -> None:
    shapes = TE | Q
    _, ledger = match(shapes, SD15, ignore=("lora_te_*",), strength={"unet": 0.5})
    assert ledger.applied == 3
    with pytest.raises(MatchError, match=r"blocks pattern 'text_model\.\*' matches no module"):
        match(shapes, SD15, ignore=("lora_te_*",), blocks={"text_model.*": 0.5})


def test_learned_embeddings_and_markers_may_be_ignored() -> None:
    tensors, metadata = load_table("real_lora_lora_disney"), load_metadata("real_lora_lora_disney")
    _, ledger = matched(matcher(SD15), source(tensors, metadata=metadata, ignore=("<s?>",)))
    assert (ledger.applied, dict(ledger.excluded)) == (384, {"ignored by the recipe: '<s?>'": 2})
    assert not ledger.embeddings
    marked: Shapes = {**GOOD, "lora_controlnet": (0,)}
    assert "a Control-LoRA" in refusal(marked, BASE)
    assert left_out(marked, BASE, "lora_controlnet") == (len(GOOD), {"ignored by the recipe: 'lora_controlnet'": 1})


def test_tensors_that_ignored_modules_share_go_with_them() -> None:
    vera: Shapes = {
        "base_model.model.blocks.0.fc.vera_lambda_b": (4,),
        "base_model.model.blocks.0.fc.vera_lambda_d": (2,),
        "base_model.vera_A": (2, 4),
        "base_model.vera_B": (4, 2),
    }
    _, ledger = match({**vera, **peft("blocks.0.attn.q", 4, 4)}, BASE, ignore=("*.fc",))
    assert dict(ledger.excluded) == {
        "ignored by the recipe: '*.fc'": 2,
        "shared by modules that are left out": 2,
    }


@pytest.mark.parametrize(
    ("glob", "words"),
    [
        ("*.attn.k_imgg", "matches nothing in the file; nearest: *.attn.k_img"),
        ("blocks.0.attn.k_im", "matches nothing in the file; nearest: blocks.N.attn.k_img"),
        ("zzzz", "matches nothing in the file"),
        ("*.alpha", "matches some tensors of a module alone, such as blocks.0.attn.q.alpha\nOnly whole modules"),
        ("*.lora_up.weight", "matches some tensors of a module alone, such as blocks.0.attn.q.lora_up.weight"),
    ],
)
def test_a_glob_without_a_use_is_an_error(glob: str, words: str) -> None:
    shapes = GOOD | LEFT["a module that the base lacks"]
    message = refusal(shapes, BASE, ignore=("*.k_img", glob))
    assert message.startswith(f"LoRA 'style': ignore pattern {glob!r} {words}")


@pytest.mark.parametrize(
    "entry", [{"ignore": ("*",)}, {"ignore": ("lora_te_*",), "components": ("text_encoder",)}], ids=str
)
def test_to_ignore_all_is_an_error(entry: dict[str, object]) -> None:
    assert refusal(TE | Q, SD15, **entry) == "LoRA 'style': ignore leaves nothing of it to bake"


def test_the_error_of_many_modules_is_quick() -> None:
    left = [f"blocks.{i}.attn.{name}" for i in range(400) for name in ("k_img", "v_img", "norm_k_img")]
    kept = [f"blocks.{i}.attn.{name}" for i in range(400) for name in ("q", "k", "v", "o", "norm_q")]
    began = time.perf_counter()
    assert line_for(left, kept) == 'ignore: ["*.attn.k_img", "*.attn.v_img", "*.attn.norm_k_img"]'
    assert line_for([f"blocks.{i}.attn.q" for i in range(400, 440)], kept) is None
    assert time.perf_counter() - began < 5
