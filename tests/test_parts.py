"""Parts that a recipe adds to a single file that becomes a folder: networks from files and folders, tokenizers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorabake import load_recipe, plan
from lorabake.artifacts.card import card_of
from lorabake.artifacts.inputs import input_files
from lorabake.artifacts.statement import statement_of, write_statement
from lorabake.errors import LorabakeError
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.reader import read_stored
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.findings import Finding, Status, Verification
from tests import builders as b
from tests.tables import load_table
from tests.test_candle import hollow

VAE, TEXT = "first_stage_model.", "cond_stage_model."


def inputs(folder: Path) -> None:
    """Write a UNet as a single file, the rest of its model as files and folders, and the whole model."""
    whole = b.sd1()
    b.save(folder / "whole.safetensors", whole)
    b.save(folder / "unet.safetensors", {k: v for k, v in whole.items() if not k.startswith((VAE, TEXT))})
    b.save(folder / "ldm.safetensors", {k.removeprefix(VAE): v for k, v in whole.items() if k.startswith(VAE)})
    b.save(folder / "first.safetensors", {k: v for k, v in whole.items() if k.startswith(VAE)})
    b.sd1_folder(folder / "saved")
    b.sd1_lora(folder / "lora.safetensors")


def recipe(folder: Path, base: str = "unet.safetensors", *, name: str = "out", **fields: object) -> Path:
    place = folder / f"{name}.yaml"
    output = {"path": name, "layout": "diffusers", **fields.pop("output", {})}  # type: ignore[dict-item]
    written = b.recipe(folder, base=base, **{"loras": [{"path": "lora.safetensors"}], **fields, "output": output})
    return written.rename(place)


def proved(path: Path) -> Verification:
    """Verify what a recipe baked, but for pictures."""
    return verify(load_recipe(path), options=VerifyOptions(stages=("structure", "weights")))


def values(path: Path) -> dict[str, bytes]:
    return {key: read_stored(info) for key, info in open_checkpoint(path).tensors.items()}


PARTS = {"vae": "ldm.safetensors", "text_encoder": "saved/text_encoder"}


@pytest.mark.parametrize("vae", ["ldm.safetensors", "first.safetensors", "saved/vae"])
def test_a_file_with_parts_becomes_the_folder_that_the_whole_file_becomes(tmp_path: Path, vae: str) -> None:
    inputs(tmp_path)
    whole = b.run(recipe(tmp_path, "whole.safetensors", name="from_whole")).path
    path = recipe(tmp_path, output={"parts": {**PARTS, "vae": vae}})
    joined = b.run(path).path
    assert values(joined) == values(whole)  # the LoRA's text encoder is baked into the part, too
    b.assert_right(proved(path))
    assert not (joined / "MISSING.txt").exists()


def test_a_folder_brings_its_configuration_and_a_file_gets_the_familys(tmp_path: Path) -> None:
    inputs(tmp_path)
    joined = b.run(recipe(tmp_path, output={"parts": PARTS})).path
    assert json.loads((joined / "text_encoder" / "config.json").read_text()) == {"of": "text_encoder"}
    assert json.loads((joined / "vae" / "config.json").read_text())["_class_name"] == "AutoencoderKL"


def test_a_tokenizer_is_copied_as_it_lies(tmp_path: Path) -> None:
    inputs(tmp_path)
    words = tmp_path / "words"
    words.mkdir()
    (words / "spiece.model").write_bytes(bytes(range(256)))
    (words / "vocab.json").write_text('{"a": 0}')
    path = recipe(tmp_path, output={"parts": {**PARTS, "tokenizer": "words"}})
    joined = b.run(path).path
    assert (joined / "tokenizer" / "spiece.model").read_bytes() == bytes(range(256))
    assert {each.name for each in (joined / "tokenizer").iterdir()} == {"spiece.model", "vocab.json"}
    b.assert_right(proved(path))
    (joined / "tokenizer" / "vocab.json").write_text('{"b": 0}')
    assert "tokenizer/vocab.json differs from the part's" in side_files(path, Status.FAIL).note


def test_a_changed_configuration_is_found(tmp_path: Path) -> None:
    inputs(tmp_path)
    path = recipe(tmp_path, output={"parts": PARTS})
    config = b.run(path).path / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    assert 'prediction_type is "epsilon", not "v_prediction"' in side_files(path, Status.FAIL).note


def side_files(path: Path, status: Status) -> Finding:
    found = [each for each in proved(path).findings if each.check == "structure.side_files"]
    return next(each for each in found if each.status is status)


def test_the_header_and_the_lock_name_the_parts(tmp_path: Path) -> None:
    inputs(tmp_path)
    path = recipe(tmp_path, output={"parts": {**PARTS, "tokenizer": "saved/tokenizer"}})
    made = plan(load_recipe(path))
    said = json.loads(made.files[0].metadata["lorabake.inputs"])
    assert said["base"]["name"] == "unet.safetensors"
    assert said["parts"]["vae"]["name"] == "ldm.safetensors"
    assert [file["name"] for file in said["parts"]["text_encoder"]["files"]] == ["model.safetensors", "config.json"]
    assert [file["name"] for file in said["parts"]["tokenizer"]["files"]] == ["vocab.json"]
    assert json.loads(made.files[0].metadata["lorabake.recipe"])["output"]["parts"].keys() == said["parts"].keys()
    listed = {each.path: sorted(each.files) for each in input_files(made.sources)}
    assert listed["saved/tokenizer"] == ["vocab.json"]
    assert listed["saved/text_encoder"] == ["config.json", "model.safetensors"]


def test_a_stated_digest_is_held_against_a_part(tmp_path: Path) -> None:
    inputs(tmp_path)
    right = b.sha256(tmp_path / "ldm.safetensors")
    parts = {**PARTS, "vae": {"path": "ldm.safetensors", "sha256": right}}
    assert b.run(recipe(tmp_path, output={"parts": parts})).path.is_dir()
    parts["vae"] = {"path": "ldm.safetensors", "sha256": "0" * 64}
    with pytest.raises(LorabakeError, match=r"ldm\.safetensors: its SHA-256 is"):
        b.run(recipe(tmp_path, name="other", output={"parts": parts}))


def test_a_second_bake_finds_the_folder_as_it_is(tmp_path: Path) -> None:
    inputs(tmp_path)
    path = recipe(tmp_path, output={"parts": {**PARTS, "tokenizer": "saved/tokenizer"}})
    first = b.tree(b.run(path).path)
    assert b.tree(b.run(path).path) == first


def test_what_parts_do_not_bring_is_told(tmp_path: Path) -> None:
    inputs(tmp_path)
    (note,) = (
        each
        for each in plan(
            load_recipe(recipe(tmp_path, output={"parts": {"text_encoder": "saved/text_encoder"}}))
        ).notes
        if "lacks" in each
    )
    assert note.startswith("the folder lacks vae (AutoencoderKL): name it in output.parts (vae: PATH), or copy it")


def test_a_t5_of_another_file_joins_a_flux(tmp_path: Path) -> None:
    hollow(tmp_path / "base.safetensors", load_table("full_flux1_schnell_bfl_776"))
    hollow(tmp_path / "t5.safetensors", load_table("transformers_t5xxl_encoder"))
    output = {"path": "out", "layout": "diffusers", "parts": {"text_encoder_2": "t5.safetensors"}}
    made = plan(load_recipe(b.recipe(tmp_path, base="base.safetensors", loras=[], output=output)))
    config = json.loads(made.texts["text_encoder_2/config.json"])
    assert (config["d_model"], config["num_heads"], config["d_kv"], config["d_ff"]) == (4096, 64, 64, 10240)
    assert "text_encoder_2/model.safetensors" in [file.name for file in made.files]


def wrong() -> Iterator[tuple[dict[str, object], str, str]]:
    yield (
        {"parts": {"vea": "ldm.safetensors"}},
        "unet.safetensors",
        "parts names 'vea', which Stable Diffusion 1",
    )
    yield (
        {"parts": {"unet": "ldm.safetensors"}},
        "unet.safetensors",
        "parts names the unet, and the base has it",
    )
    yield {"parts": {"vae": "ldm.safetensors"}}, "whole.safetensors", "the base has it itself"
    yield {"parts": {"vae": "lora.safetensors"}}, "unet.safetensors", "lora.safetensors: is no vae that the family's"
    yield {"parts": {"vae": "nothing.safetensors"}}, "unet.safetensors", "nothing.safetensors"
    yield {"parts": {"tokenizer": "ldm.safetensors"}}, "unet.safetensors", "is a file, and the tokenizer is a folder"
    yield {"parts": {"tokenizer": "empty"}}, "unet.safetensors", "is empty, and output.parts takes the tokenizer"
    yield {"parts": PARTS}, "saved", "the base is a folder"
    yield {"parts": PARTS, "layout": "keep", "path": "o.safetensors"}, "unet.safetensors", "write layout: diffusers"
    yield (
        {"parts": {"vae": {"path": "saved/vae", "sha256": "0" * 64}}},
        "unet.safetensors",
        "sha256 is for a file, and vae is a folder",
    )


@pytest.mark.parametrize(("output", "base", "told"), list(wrong()))
def test_what_cannot_be_added_is_told(output: dict[str, object], base: str, told: str, tmp_path: Path) -> None:
    inputs(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LorabakeError) as error:
        plan(load_recipe(recipe(tmp_path, base, output=output)))
    assert told in str(error.value)


def test_the_base_as_it_lies_is_what_is_described(tmp_path: Path) -> None:
    inputs(tmp_path)
    sources = plan(load_recipe(recipe(tmp_path, output={"parts": PARTS}))).sources
    assert len(list(sources.opened.headers)) == 1
    assert sources.base.tensors.keys() > sources.opened.tensors.keys()
    assert os.path.samefile(sources.inputs[0][0].path, tmp_path / "unet.safetensors")


def test_a_statement_and_a_card_name_the_parts(tmp_path: Path) -> None:
    inputs(tmp_path)
    path = recipe(tmp_path, output={"parts": {**PARTS, "tokenizer": "saved/tokenizer"}})
    joined = b.run(path).path
    statement = statement_of(plan(load_recipe(path)))
    definition = statement["predicate"]["buildDefinition"]  # type: ignore[index]
    roles = {each["name"]: each["annotations"]["role"] for each in definition["resolvedDependencies"]}
    assert roles == {
        "unet.safetensors": "base",
        "lora.safetensors": "loras.0",
        "ldm.safetensors": "output.parts.vae",
        "saved/text_encoder/model.safetensors": "output.parts.text_encoder",
        "saved/text_encoder/config.json": "output.parts.text_encoder",
        "saved/tokenizer/vocab.json": "output.parts.tokenizer",
    }
    assert {each["name"] for each in statement["subject"]} == {f"out/{name}" for name in b.tree(joined)}  # type: ignore[attr-defined]
    write_statement(plan(load_recipe(path)))
    verification = verify(load_recipe(path), options=VerifyOptions(stages=["provenance"]))
    assert {finding.status for finding in verification.findings} == {Status.PASS}
    card = card_of(joined).content.decode()
    assert f"| vae | ldm.safetensors |  | {b.sha256(tmp_path / 'ldm.safetensors')} |" in card
