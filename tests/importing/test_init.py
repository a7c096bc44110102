"""`lorabake init`: what a prompt, a picture or options say becomes a recipe that plans, or a clear error."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lorabake.baking import plan
from lorabake.cli import lorabake
from lorabake.errors import LorabakeError, RecipeError
from lorabake.importing.block_weights import LISTS, PRESETS
from lorabake.importing.infotext import read_infotext
from lorabake.importing.pictures import read_picture
from lorabake.importing.prompts import calls_in, read_presets
from lorabake.importing.wanted import Call
from lorabake.importing.workflow import read_workflow
from lorabake.recipe import load_recipe
from tests import builders as b

BLOCKS = {
    12: "BASE IN04 IN05 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05",
    17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
    20: "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 M00 OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08",
    26: "BASE IN00 IN01 IN02 IN03 IN04 IN05 IN06 IN07 IN08 IN09 IN10 IN11 M00 "
    "OUT00 OUT01 OUT02 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11",
}

INFOTEXT = """a portrait of a knight, <lora:lora:0.5:0.7>, masterpiece
in two lines
Negative prompt: blurry, <lora:not-read:1>
worse
Steps: 24, Sampler: Euler a, CFG scale: 6.5, Seed: 1234567890123, Size: 512x768, Model hash: 0123456789, \
Model: base, VAE: fine.vae.pt, Clip skip: 2, Lora hashes: "lora: {digest}", Version: v1.10.1"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a base and LoRAs in the folders where web UIs keep them."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "Lora" / "people").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    b.save(folder / "checkpoints" / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(folder / "Lora" / "lora.safetensors")
    b.sd1_lora(folder / "Lora" / "people" / "knight.safetensors")
    b.sd1_lora(folder / "Lora" / "twin.safetensors")
    b.sd1_lora(folder / "Lora" / "people" / "twin.safetensors")
    name = b.unet_lora(b.Q)
    b.kohya(folder / "Lora" / "unet.safetensors", {name: b.lora((b.W, b.W))}, {"ss_output_name": "trained as"})
    return folder


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(models)
    return models


def init(*words: str) -> Result:
    return CliRunner().invoke(lorabake, ["init", *words], catch_exceptions=True)


def drafted(folder: Path, *words: str) -> Path:
    """Run init, which must work, and plan what it wrote."""
    recipe = folder / "made.yaml"
    recipe.unlink(missing_ok=True)
    result = init(str(recipe), *words)
    assert result.exception is None, result.exception
    plan(recipe)
    return recipe


def fails(*words: str) -> str:
    result = init("never.yaml", *words)
    assert isinstance(result.exception, LorabakeError), result.output
    assert not Path("never.yaml").exists()
    return str(result.exception)


BASE = ("--base", "checkpoints/base.safetensors")


# -- prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "call"),
    [
        ("<lora:a>", Call("a")),
        ("<lora:a:0.8>", Call("a", 0.8, 0.8)),
        ("<lyco:a b:0.5:0.7>", Call("a b", model=0.7, text=0.5)),
        ("<lora:a:te=0.5:unet=0.7>", Call("a", model=0.7, text=0.5)),
        ("<lora:a:0.5:unet=0>", Call("a", model=0.0, text=0.5)),
        ("<lora:a:unet=0.4>", Call("a", 0.4, 0.4)),
        ("<lora:a:-1>", Call("a", -1.0, -1.0)),
        ("<lora:a:1:1:lbw=OUTALL>", Call("a", blocks=PRESETS["OUTALL"])),
        ("<lora:a:1:IND>", Call("a", blocks=PRESETS["IND"])),
        ("<lora:a:1:1:w=" + ",".join(["0.5"] * 12) + ">", Call("a", blocks=(0.5,) * 12)),
        ("<lora:a:1:0,0,0,0,0,0,0,0,0,0,0,1>", Call("a", blocks=(0.0,) * 11 + (1.0,))),
    ],
)
def test_a_tag_is_read_as_a1111_reads_it(tag: str, call: Call) -> None:
    assert calls_in(f"a cat, {tag}, sharp") == ("a cat, sharp", (call,))


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("<lora:a:0.8", "has no '>' at its end"),
        ("<lora::0.8>", "names no LoRA"),
        ("<lora:a:much>", "'much' is no number"),
        ("<lora:a:inf>", "'inf' is no number"),
        ("<lora:a:1:1:8>", "a third number shortens the LoRA"),
        ("<lora:a:1:dyn=8>", "a third number shortens the LoRA"),
        ("<lora:a:1:stop=9>", "stop= limits a LoRA to some of the steps"),
        ("<lora:a:1:step=3-9>", "step= limits a LoRA to some of the steps"),
        ("<lora:a:1:lbwe=ATTNDEEPON>", "lbwe= is for single layers"),
        ("<lora:a:1:colour=9>", "colour= is unknown"),
        ("<lora:a:1:1:lbw=OUTAL>", "there is no preset 'OUTAL'\nDid you mean OUTALL?"),
        ("<lora:a:1:1:lbw=1,2,3>", "has 3 block weights"),
        ("<lora:a:1:1:lbw=" + ",".join(["1"] * 16 + ["R"]) + ">", "is a random number"),
        ("<lora:a:1:1:lbw=" + ",".join(["1"] * 16 + ["X"]) + ">", "is a place for another number"),
        ("<lora:a:1:1:lbw=" + ",".join(["1"] * 16 + ["?"]) + ">", "'?' is no number"),
        ("<hypernet:a:1>", "is a hypernetwork, not a LoRA"),
        ("<loras:a:1>", "is no tag of a LoRA"),
    ],
)
def test_a_tag_that_no_recipe_can_hold_is_an_error(tag: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        calls_in(f"a cat {tag}")
    assert words in str(error.value)


def test_other_tags_stay_in_the_prompt() -> None:
    assert calls_in("a <wildcard:animal> cat") == ("a <wildcard:animal> cat", ())


def test_own_presets_are_read_from_the_extensions_file() -> None:
    text = "a comment\nMINE:" + ",".join(["0.25"] * 12) + "\n#OFF:1,1\nXYZ:::1\n"
    assert read_presets(text, "lbwpresets.txt")["MINE"] == (0.25,) * 12
    with pytest.raises(RecipeError, match=r"lbwpresets.txt:1: has 2 block weights"):
        read_presets("BAD:1,1", "lbwpresets.txt")


# -- block weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", BLOCKS)
def test_lists_of_unets_name_the_extensions_blocks(count: int) -> None:
    names = [name for name, _ in LISTS[count].blocks]
    assert names == BLOCKS[count].split()
    assert all(f".{int(name[-2:])}." in patterns[0] for name, patterns in LISTS[count].blocks if name[0] in "IO")


def test_lists_of_flux_have_19_double_and_38_single_blocks() -> None:
    assert [len(LISTS[count].blocks) for count in (19, 38, 57, 61)] == [19, 38, 57, 61]
    assert LISTS[57].blocks[18][1] == ("double_blocks.18.*",)
    assert LISTS[57].blocks[19][1] == ("single_blocks.0.*",)
    assert LISTS[19].blocks[9][1] == ("double_blocks.9.*", "single_blocks.18.*", "single_blocks.19.*")


def test_presets_are_of_17_values() -> None:
    assert PRESETS["INS"] == (1,) * 4 + (0,) * 13
    assert PRESETS["MIDD"] == (1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0)
    assert PRESETS["OUTS"] == (1,) + (0,) * 11 + (1,) * 5
    assert {len(values) for name, values in PRESETS.items() if name != "FLUXALL"} == {17}


def strengths(recipe: Path) -> dict[str, float]:
    """Map baked modules to their strengths."""
    return {patch.module: patch.strength for patch in plan(recipe, recipe.parent / "x.safetensors").patches}


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("OUTALL", {"text": 0.5, "input_blocks": 0, "output_blocks": 0.7}),
        ("INALL", {"text": 0.5, "input_blocks": 0.7, "output_blocks": 0}),
        ("0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0.5", {"text": 0, "input_blocks": 0, "output_blocks": 0.35}),
        ("ALL", {"text": 0.5, "input_blocks": 0.7, "output_blocks": 0.7}),
    ],
)
def test_block_weights_become_patterns(here: Path, blocks: str, expected: dict[str, float]) -> None:
    tag = f"<lora:lora:0.5:0.7:lbw={blocks}>"
    found = strengths(drafted(here, *BASE, "--prompt", tag, "--lora-dir", "Lora"))
    marks = {"text": "te_text", "input_blocks": "down_blocks", "output_blocks": "up_blocks"}
    for part, strength in expected.items():
        own = {round(value, 6) for module, value in found.items() if marks[part] in module}
        assert own == ({strength} if strength else set()), part


def test_blocks_that_a_lora_has_not_are_left_out_of_the_recipe(here: Path) -> None:
    recipe = drafted(here, *BASE, "--prompt", "<lora:unet:1:1:lbw=OUTALL>", "--lora-dir", "Lora")
    (lora,) = load_recipe(recipe).loras
    assert set(lora.blocks) <= {"input_blocks.*", "middle_block.*", "output_blocks.*"}


def test_block_weights_of_another_network_are_refused(here: Path) -> None:
    tag = "<lora:lora:1:1:lbw=" + ",".join(["1"] * 57) + ">"
    assert "57 block weights are for another network than Stable Diffusion 1.x" in fails(
        *BASE, "--prompt", tag, "--lora-dir", "Lora"
    )


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("lora", "Lora/lora.safetensors"),
        ("LORA", "Lora/lora.safetensors"),
        ("knight", "Lora/people/knight.safetensors"),
        ("people/knight", "Lora/people/knight.safetensors"),
        ("people\\twin", "Lora/people/twin.safetensors"),
        ("twin.safetensors", "Lora/twin.safetensors"),
        ("trained as", "Lora/unet.safetensors"),
    ],
)
def test_a_name_finds_its_file(here: Path, name: str, file: str) -> None:
    recipe = drafted(here, *BASE, "--prompt", f"<lora:{name}:0.8>", "--lora-dir", "Lora")
    assert [lora.path for lora in load_recipe(recipe).loras] == [file]


def test_a_name_of_no_file_or_of_two_is_an_error(here: Path) -> None:
    found = fails(*BASE, "--prompt", "<lora:knigth:1>", "--lora-dir", "Lora")
    assert "no file of this name in Lora" in found
    assert "Did you mean knight.safetensors?" in found
    Path("again").mkdir(exist_ok=True)
    b.sd1_lora(Path("again/knight.safetensors"))
    twice = fails(*BASE, "--prompt", "<lora:knight:1>", "--lora-dir", "Lora", "--lora-dir", "again")
    assert "2 files have this name: Lora/people/knight.safetensors, again/knight.safetensors" in twice
    assert "Give the folder: --lora-dir DIR" in fails(*BASE, "--prompt", "<lora:lora:1>")


# -- pictures ------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(path: Path, *chunks: bytes) -> Path:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b""))
    return path


def text_chunk(kind: bytes, keyword: str, text: str) -> bytes:
    key = keyword.encode("latin-1") + b"\0"
    match kind:
        case b"tEXt":
            return chunk(kind, key + text.encode("latin-1"))
        case b"zTXt":
            return chunk(kind, key + b"\0" + zlib.compress(text.encode("latin-1")))
    return chunk(b"iTXt", key + b"\1\0en\0\0" + zlib.compress(text.encode()))


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_picture_of_a1111_becomes_a_recipe(here: Path, tmp_path: Path, kind: bytes) -> None:
    data = (here / "Lora" / "lora.safetensors").read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    made = picture(tmp_path / "made.png", text_chunk(kind, "parameters", INFOTEXT.format(digest=digest[:12])))
    recipe = load_recipe(drafted(here, "--from", str(made), "--lora-dir", "Lora", "--base-dir", "checkpoints"))
    assert recipe.base.path == "checkpoints/base.safetensors"
    assert [(lora.path, lora.strength) for lora in recipe.loras] == [
        ("Lora/lora.safetensors", {"unet": 0.7, "text_encoder": 0.5})
    ]
    assert recipe.verify is not None
    assert recipe.verify.model_dump(exclude_none=True) == {
        "prompts": ("a portrait of a knight, masterpiece in two lines",),
        "negative_prompt": "blurry, <lora:not-read:1> worse",
        "seed": 1234567890123,
        "steps": 24,
        "size": (512, 768),
        "guidance": 6.5,
    }
    assert "# The picture was made with the VAE fine.vae.pt." in (recipe.text or "")


def test_another_file_of_the_name_is_an_error(here: Path, tmp_path: Path) -> None:
    text = INFOTEXT.format(digest="0123456789ab")
    made = picture(tmp_path / "made.png", text_chunk(b"tEXt", "parameters", text))
    words = fails("--from", str(made), "--lora-dir", "Lora", "--base-dir", "checkpoints")
    assert "is not the LoRA that the picture was made with" in words


def test_a_picture_without_a_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(LorabakeError, match="does not say how it was made"):
        read_picture(picture(tmp_path / "bare.png"), {})
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(60))
    with pytest.raises(LorabakeError, match="is a JPEG picture, and the texts are read from PNG pictures only"):
        read_picture(tmp_path / "photo.jpg", {})
    bomb = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(bytes(1 << 25)))
    with pytest.raises(LorabakeError, match="the text b'parameters' in it is damaged"):
        read_picture(picture(tmp_path / "bomb.png", bomb), {})
    with pytest.raises(LorabakeError, match="is not what AUTOMATIC1111 and Forge write"):
        read_infotext("a poem about cats", "poem.png", {})


# -- workflows -----------------------------------------------------------------------------------------------


def node(title: str, **inputs: object) -> dict[str, object]:
    return {"class_type": title, "inputs": inputs}


def workflow(**changed: dict[str, object]) -> str:
    """Write ComfyUI's usual graph with two LoRAs, one of them on the model alone."""
    nodes = {
        "4": node("CheckpointLoaderSimple", ckpt_name="base.safetensors"),
        "10": node("LoraLoader", model=["4", 0], clip=["4", 1], lora_name="lora.safetensors", strength_model=0.8,
                   strength_clip=0.4),
        "11": node("LoraLoaderModelOnly", model=["10", 0], lora_name="people\\knight.safetensors",
                   strength_model=0.5),
        "6": node("CLIPTextEncode", clip=["10", 1], text="a cat,\nsleeping"),
        "7": node("CLIPTextEncode", clip=["10", 1], text="blurry"),
        "5": node("EmptyLatentImage", width=512, height=640, batch_size=1),
        "3": node("KSampler", model=["11", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0], seed=42,
                  steps=20, cfg=7, sampler_name="euler", scheduler="normal", denoise=1),
    }  # fmt: skip
    return json.dumps({**nodes, **{number.lstrip("n"): said for number, said in changed.items()}})


def test_a_workflow_of_plain_loaders_is_followed(here: Path, tmp_path: Path) -> None:
    made = picture(tmp_path / "comfy.png", text_chunk(b"tEXt", "prompt", workflow()))
    recipe = load_recipe(drafted(here, "--from", str(made), "--lora-dir", "Lora", "--base-dir", "checkpoints"))
    assert [(lora.path, lora.strength) for lora in recipe.loras] == [
        ("Lora/lora.safetensors", {"unet": 0.8, "text_encoder": 0.4}),
        ("Lora/people/knight.safetensors", {"unet": 0.5, "text_encoder": 0}),
    ]
    assert recipe.verify is not None
    assert (recipe.verify.prompts, recipe.verify.seed, recipe.verify.size) == (("a cat, sleeping",), 42, (512, 640))


def test_a_text_encoder_without_the_lora_has_strength_0() -> None:
    wanted = read_workflow(workflow(n6=node("CLIPTextEncode", clip=["4", 1], text="a cat")), "x.png")
    assert [(call.model, call.text) for call in wanted.calls] == [(0.8, 0.0), (0.5, 0.0)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"n11": node("Power Lora Loader (rgthree)", model=["10", 0])}, "node 11 ('Power Lora Loader (rgthree)')"),
        ({"n11": node("IPAdapter", model=["10", 0])}, "gives a model, in a way unknown here"),
        ({"n11": node("LoraLoaderModelOnly", lora_name="x", strength_model=1)}, "has no model"),
        ({"n11": node("LoraLoaderModelOnly", model=["11", 0], lora_name="x", strength_model=1)}, "its own input"),
        ({"n11": node("LoraLoaderModelOnly", model=["10", 0], lora_name="x", strength_model=["9", 0])},
         "does not say its strength_model"),
        ({"n4": node("CheckpointLoaderSimple", ckpt_name=["8", 0])}, "does not say its ckpt_name"),
        ({"n6": node("ConditioningCombine", conditioning_1=["7", 0])}, "gives the prompt, and is not plain"),
        ({"n3": node("SamplerCustom", model=["11", 0])}, "has no node KSampler"),
        ({"n2": node("KSampler", model=["4", 0], positive=["6", 0])}, "samples 2 models"),
    ],
)  # fmt: skip
def test_a_workflow_that_is_not_plain_is_an_error(changed: dict[str, dict[str, object]], words: str) -> None:
    with pytest.raises(LorabakeError) as error:
        read_workflow(workflow(**changed), "x.png")
    assert words in str(error.value)


def test_nodes_of_sampling_are_passed_and_told() -> None:
    sampling = node("ModelSamplingDiscrete", model=["10", 0], sampling="v_prediction", zsnr=True)
    end = node("LoraLoaderModelOnly", model=["12", 0], lora_name="x", strength_model=1)
    wanted = read_workflow(workflow(n12=sampling, n11=end), "x.png")
    assert [call.name for call in wanted.calls] == ["lora.safetensors", "x"]
    assert wanted.notes == ("The workflow has a node ModelSamplingDiscrete: it is about sampling, and not baked.",)


@pytest.mark.parametrize("text", ["no json", "[1]", '{"nodes": [1]}'])
def test_what_is_no_workflow_is_an_error(text: str) -> None:
    with pytest.raises(LorabakeError, match=r"x.png: the workflow in it is"):
        read_workflow(text, "x.png")


# -- the command ---------------------------------------------------------------------------------------------


def test_options_alone_make_a_recipe_beside_the_paths(here: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "made.yaml"
    result = init(str(recipe), *BASE, "--lora", "Lora/lora.safetensors=0.8", "-o", "baked.safetensors")
    assert result.exception is None
    loaded = load_recipe(recipe)
    assert loaded.locate(loaded.loras[0].path).samefile(here / "Lora" / "lora.safetensors")
    assert loaded.locate(loaded.output.path) == here / "baked.safetensors" or loaded.output.path.startswith("..")
    plan(recipe)


def test_nothing_is_overwritten_and_nothing_is_guessed(here: Path) -> None:
    Path("there.yaml").write_text("mine")
    result = init("there.yaml", *BASE, "--lora", "Lora/lora.safetensors=0.8")
    assert "is there already" in str(result.exception)
    assert Path("there.yaml").read_text() == "mine"
    assert "there is no LoRA to bake" in fails(*BASE)
    assert "--base is missing" in fails("--prompt", "<lora:lora:1>", "--lora-dir", "Lora")
    assert "--prompt and --from were given" in fails(*BASE, "--prompt", "x", "--from", "y.png")
    assert "there is no LoRA in it" in fails(*BASE, "--prompt", "a cat")
