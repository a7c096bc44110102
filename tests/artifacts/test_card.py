"""Model cards: the hub's validator reads them, they say what the file says, and nobody's title becomes markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import lorabake
from lorabake.artifacts.card import card_of, card_path, write_card
from lorabake.artifacts.licenses import IDENTIFIERS, NAMES, identifier_of
from lorabake.artifacts.made import hub_id
from lorabake.cli import lorabake as command
from lorabake.errors import ArgumentError, FileError, TargetError
from lorabake.recipe import parse_recipe
from tests import builders as b

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("file")
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    b.run(b.recipe(folder, loras=[{"path": "lora.safetensors", "strength": 0.5, "blocks": {"unet.*": 0.25}}]))
    return folder


@pytest.fixture(scope="module")
def baked_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folder")
    b.sd1_folder(folder / "base")
    (folder / "base" / "README.md").write_text("# The base\n")
    b.sd1_lora(folder / "lora.safetensors")
    b.run(b.recipe(folder, base="base", output={"path": "out"}))
    return folder


@pytest.fixture
def folder(baked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(baked, tmp_path / "copy"))


@pytest.fixture
def pipeline(baked_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(baked_folder, tmp_path / "copy of a folder"))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False)


def text_of(output: Path, **options: Any) -> str:
    return card_of(output, **options).content.decode()


def front_of(text: str) -> dict[str, Any]:
    """Read a card's front matter as YAML."""
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


def block(text: str, language: str, number: int = 0) -> str:
    found = re.findall(rf"^(`{{3,}}){language}\n((?:.*\n)*?)\1$", text, re.MULTILINE)
    return str(found[number][1])


def restated(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Write a file anew with other metadata."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


# -- what it says ----------------------------------------------------------------------------------------


def test_a_card_lies_beside_a_file_and_in_a_folder(folder: Path, pipeline: Path) -> None:
    assert write_card(card_of(folder / "out.safetensors")) == folder / "out.md"
    assert write_card(card_of(pipeline / "out")) == pipeline / "out" / "README.md"


def test_a_card_says_what_it_is_made_of_and_its_digests(folder: Path) -> None:
    text = text_of(folder / "out.safetensors")
    assert "# out\n" in text
    assert "A checkpoint of Stable Diffusion 1.x with 1 LoRA baked in." in text
    assert f"| LoRA | lora.safetensors | 0.5 | {b.sha256(folder / 'lora.safetensors')} |" in text
    sha256 = b.sha256(folder / "out.safetensors")
    assert f"| {sha256} | {sha256[:10]} |" in text


def test_the_front_matter_has_what_is_known_and_invents_nothing(folder: Path) -> None:
    assert front_of(text_of(folder / "out.safetensors")) == {
        "library_name": "diffusion-single-file",
        "pipeline_tag": "text-to-image",
        "tags": ["lorabake", "merge", "lora", "sd1"],
    }


def test_programs_that_load_a_file_are_told(folder: Path, tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sdxl())
    b.run(b.recipe(tmp_path, loras=[], output={"dtype": "float32"}))
    for output in (folder / "out.safetensors", tmp_path / "out.safetensors"):
        text = text_of(output)
        headings = re.findall(r"^### (.*)$", text, re.MULTILINE)
        assert headings == ["diffusers", "ComfyUI", "AUTOMATIC1111, Forge"]


def test_a_folder_is_for_diffusers(pipeline: Path) -> None:
    assert front_of(text_of(pipeline / "out"))["library_name"] == "diffusers"


def test_a_language_model_is_for_transformers(tmp_path: Path) -> None:
    b.llama(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLM"]}))
    b.run(b.recipe(tmp_path, base="base", loras=[], output={"path": "out", "dtype": "float16"}))
    text = text_of(tmp_path / "out")
    assert front_of(text)["library_name"] == "transformers"
    assert front_of(text)["pipeline_tag"] == "text-generation"
    assert 'AutoModelForCausalLM.from_pretrained("out")' in text


def test_inputs_of_the_hub_are_base_models(folder: Path) -> None:
    def change(said: dict[str, str]) -> None:
        recipe = json.loads(said["lorabake.recipe"])
        recipe["base"]["path"] = "hf://stable-diffusion-v1-5/stable-diffusion-v1-5@main/v1-5-pruned.safetensors"
        recipe["loras"][0]["path"] = "hf://someone/ink/ink.safetensors"
        said["lorabake.recipe"] = json.dumps(recipe)

    restated(folder / "out.safetensors", change)
    front = front_of(text_of(folder / "out.safetensors", base_models=["org/more"]))
    assert front["base_model"] == ["stable-diffusion-v1-5/stable-diffusion-v1-5", "someone/ink", "org/more"]
    assert front["base_model_relation"] == "merge"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("hf://org/model", "org/model"),
        ("hf://org/model@0123abc/a/b.safetensors", "org/model"),
        ("hf://org/model/b.safetensors", "org/model"),
        ("hf://models/org/model/b.safetensors", "org/model"),
        ("hf://datasets/org/model/b.safetensors", ""),
        ("org/model", ""),
        ("models/base.safetensors", ""),
        ("hf://org", ""),
        ("hf://org/mo..del", ""),
        ("hf://org/mo--del", ""),
        ("hf://org/model\nlicense: mit", ""),
        ("https://huggingface.co/org/model/resolve/main/x.safetensors", ""),
    ],
)
def test_names_on_the_hub_come_from_addresses_alone(path: str, name: str) -> None:
    assert hub_id(path) == name


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "org/na me", "org/x\n- evil/y"])
def test_a_base_model_that_the_hub_cannot_have_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match="give a name on the Hugging Face hub"):
        card_of(folder / "out.safetensors", base_models=[name])


def said(**fields: str) -> Callable[[dict[str, str]], object]:
    """Return a change that gives a file an identity of its own, with these fields of ModelSpec."""
    spec = {f"modelspec.{name}": text for name, text in {"merged_from": "base, lora (0.5)", **fields}.items()}
    return lambda metadata: metadata.update(spec)


@pytest.mark.parametrize(
    ("stated", "front"),
    [
        ("apache-2.0", {"license": "apache-2.0"}),
        ("CreativeML Open RAIL++-M License", {"license": "openrail++"}),
        ("base: mit; lora: CC BY-NC 4.0", {"license": "other", "license_name": "see-the-model-card"}),
        ("Ask me first", {"license": "other", "license_name": "see-the-model-card"}),
    ],
)
def test_a_licence_is_what_the_inputs_state(folder: Path, stated: str, front: dict[str, str]) -> None:
    restated(folder / "out.safetensors", said(license=stated))
    text = text_of(folder / "out.safetensors")
    found = front_of(text)
    assert {name: found[name] for name in found if name.startswith("license")} == front
    assert all(f"- {part}\n" in text.replace("\\", "") for part in stated.split("; "))


def test_known_licences_have_identifiers() -> None:
    assert all(identifier_of(name) in IDENTIFIERS for name in (*NAMES, *IDENTIFIERS))
    assert identifier_of("mit; apache-2.0") == ""


def test_title_architecture_and_trigger_phrases_are_the_files_own(folder: Path) -> None:
    phrases = json.dumps([["ink", "inkpunk style"], ["knight", "kn1ght"]])

    def change(metadata: dict[str, str]) -> None:
        said(title="My bake", architecture="stable-diffusion-v1")(metadata)
        metadata["lorabake.trigger_phrases"] = phrases

    restated(folder / "out.safetensors", change)
    text = text_of(folder / "out.safetensors")
    assert "# My bake\n" in text
    assert "| architecture | stable-diffusion-v1 |" in text
    assert "| inkpunk style | ink |" in text
    assert 'pipeline("inkpunk style, kn1ght")' in text


def test_a_title_of_the_base_does_not_become_the_cards(folder: Path) -> None:
    """Older versions of lorabake left the base's fields in the header."""

    def change(metadata: dict[str, str]) -> None:
        del metadata["modelspec.merged_from"]
        metadata["modelspec.title"] = "Famous Base XL"

    restated(folder / "out.safetensors", change)
    assert "Famous" not in text_of(folder / "out.safetensors")


def test_what_lorabake_did_not_bake_has_no_card(folder: Path) -> None:
    with pytest.raises(FileError, match="holds no recipe, so lorabake did not bake it"):
        card_of(folder / "base.safetensors")


def test_the_recipe_in_a_card_bakes_the_same_bytes(folder: Path) -> None:
    text = text_of(folder / "out.safetensors")
    sha256 = b.sha256(folder / "out.safetensors")
    (folder / "out.safetensors").unlink()
    recipe = parse_recipe(block(text, "yaml"), folder)
    lorabake.bake(recipe)
    assert b.sha256(folder / "out.safetensors") == sha256


def test_a_statement_beside_tells_the_digest_of_the_base(folder: Path) -> None:
    sha256 = b.sha256(folder / "base.safetensors")
    assert sha256 not in text_of(folder / "out.safetensors")
    assert run("bake", folder / "recipe.yaml", "--provenance", "--card").exception is None
    assert f"| base | base.safetensors |  | {sha256} |" in (folder / "out.md").read_text()
    restated(folder / "out.safetensors", lambda metadata: metadata.update(more="than was stated"))
    assert sha256 not in text_of(folder / "out.safetensors")


def test_inputs_at_hand_tell_what_became_of_each_lora(folder: Path) -> None:
    assert run("card", folder / "out.safetensors", "--inputs", folder).exception is None
    assert "12 of 12 tensors applied" in (folder / "out.md").read_text()


# -- the hub's own validator -----------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("output", ["out.safetensors", "out"])
def test_the_hubs_own_reader_takes_a_card(request: pytest.FixtureRequest, output: str) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = request.getfixturevalue("pipeline" if output == "out" else "folder")
    target = folder / output
    if output != "out":
        restated(target, said(license="base: mit; lora: other"))
    place = write_card(card_of(target, base_models=["org/base", "org/lora"]))
    card = hub.ModelCard.load(place)
    assert card.data.base_model == ["org/base", "org/lora"]
    assert card.data.to_dict() == front_of(place.read_text())
    for name in card.data.base_model:
        hub.utils.validate_repo_id(name)
    assert hub.metadata_load(place) == front_of(place.read_text())
    assert card.text.lstrip().startswith("# out")


@pytest.mark.oracle
def test_the_hub_is_asked_with_the_card_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`validate` posts to the hub; a stub on loopback takes its place, and says what it would say of bad YAML."""
    hub = pytest.importorskip("huggingface_hub")
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    asked: list[dict[str, str]] = []

    class Stub(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            front = yaml.safe_load(asked[-1]["content"].split("---\n")[1])
            licence = front.get("license", "other")
            is_right = isinstance(front.get("tags"), list) and licence in {*IDENTIFIERS, "other", "unknown"}
            answer = b"" if is_right else str(licence).encode()
            self.send_response(200 if is_right and self.path == "/api/validate-yaml" else 400)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    restated(folder / "out.safetensors", said(license="MIT"))
    server = HTTPServer(("127.0.0.1", 0), Stub)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which other tests ask for
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        card = hub.ModelCard.load(write_card(card_of(folder / "out.safetensors")))
        card.validate()
        card.data.license = "no such licence"
        with pytest.raises(ValueError, match="no such licence"):
            card.validate()
    finally:
        server.shutdown()
        server.server_close()
    assert asked[0]["repoType"] == "model"
    assert asked[0]["content"] == (folder / "out.md").read_text()


# -- what others wrote -----------------------------------------------------------------------------------

HOSTILE = [
    "a](javascript:alert(1)) [b",
    "</td><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "x\n---\nlicense: mit\n---\n# y",
    "```\n# out of the block",
    "| a | b |",
    "![x](https://evil.example/track.png)",
    "www.evil.example and @everyone",
    "\u202egnp.exe",
    "{{ made.said }} {% for x in y %}",
    "`code` *bold* _it_ ~~no~~ $x$",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_title_phrase_licence_or_path_becomes_markup(folder: Path, text: str) -> None:
    plain = text_of(folder / "out.safetensors")

    def change(metadata: dict[str, str]) -> None:
        said(title=text, architecture=text, resolution=text, license=text)(metadata)
        metadata["lorabake.trigger_phrases"] = json.dumps([[text, text]])
        metadata["lorabake.version"] = text
        metadata["lorabake.device"] = text
        recipe = json.loads(metadata["lorabake.recipe"])
        recipe["loras"][0]["path"] = text
        metadata["lorabake.recipe"] = json.dumps(recipe)

    restated(folder / "out.safetensors", change)
    card = text_of(folder / "out.safetensors")
    assert front_of(card).keys() <= {*front_of(plain), "license", "license_name"}
    assert front_of(card).get("license") in (None, "other")
    prose = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", card, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in prose
    assert "<img" not in prose
    assert not re.search(r"(?<!\\)\]\((?!https://github\.com/lorabake)", prose)
    assert "\u202e" not in card
    assert "evil.example" not in re.sub(r"(www|https)&#8203;", "", prose) or "&#8203;" in prose
    headings = re.findall(r"^#+ .*$", prose, re.MULTILINE)
    assert headings[0].startswith("# ")
    assert {*headings[1:]} - {"## Trigger phrases"} == {*re.findall(r"^##+ .*$", plain, re.MULTILINE)}
    rows = re.findall(r"(?<!\\)\|", next(line for line in prose.splitlines() if line.startswith("| LoRA |")))
    assert len(rows) == 5
    compile(block(card, "python"), "snippet", "exec")


def test_no_file_name_becomes_markup(folder: Path) -> None:
    name = "x](y) `rm -rf` <b>'$(id)\".safetensors"
    (folder / "out.safetensors").rename(folder / name)
    card = text_of(folder / name)
    compile(block(card, "python"), "snippet", "exec")
    prose = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", card, flags=re.MULTILINE | re.DOTALL)
    assert "<b>" not in prose
    done = subprocess.run(
        ["sh", "-c", f"lorabake() {{ printf '%s\\n' \"$2\"; }}\n{block(card, 'sh')}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [name.replace(".safetensors", ".yaml")] * 2


# -- the report ------------------------------------------------------------------------------------------


def report_about(output: Path, folder: Path, **fields: Any) -> Path:
    """Write what a card reads of a report, with a picture."""
    folder.mkdir()
    digests = [{"path": output.name, "sha256": b.sha256(output)}]
    lora = {"path": "lora.safetensors", "tensors": 12, "applied": 12, "excluded": [], "modules": [], "kinds": []}
    report = {
        "lorabake": "verify", "version": 2, "verdict": "verified", "stages": [{"stage": "weights", "seconds": 1.0}],
        "environment": {"date": "2026-11-29", "output": {"path": output.name, "of": "files", "digests": digests}},
        "plan": {"loras": [lora]}, "grid": {},
        "samples": {"pictures": [{"prompt": "a *red* cat", "seed": 0}]}, **fields,
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "grid.png").write_bytes(PNG)
    return folder


def test_a_report_brings_verdict_ledger_and_pictures(folder: Path) -> None:
    report = report_about(folder / "out.safetensors", folder / "report")
    result = run("card", folder / "out.safetensors", "--report", report)
    assert result.exception is None
    text = (folder / "out.md").read_text()
    assert "on 2026-11-29: this checkpoint was found to be what the recipe says (stages: weights)." in text
    assert "- lora.safetensors: 12 of 12 tensors applied" in text
    assert "![Pictures of the base and of this checkpoint](out.samples.png)" in text
    assert "- a \\*red\\* cat" in text
    assert (folder / "out.samples.png").read_bytes() == PNG


def test_a_report_of_the_program_is_read(folder: Path) -> None:
    result = run("verify", folder / "recipe.yaml", "--stage", "structure", "--report", folder / "report", "-q")
    assert result.exception is None
    text = text_of(folder / "out.safetensors", report=folder / "report")
    assert "found to be what the recipe says (stages: structure)" in text
    assert "12 of 12 tensors applied (text\\_encoder ×1, unet ×3; LoRA ×4)" in text


@pytest.mark.parametrize("of", ["files", "headers"])
def test_a_report_about_another_file_is_refused(folder: Path, of: str) -> None:
    environment = {"output": {"path": "out.safetensors", "of": of, "digests": [{"path": "x", "sha256": "0" * 64}]}}
    report = report_about(folder / "out.safetensors", folder / "report", environment=environment)
    with pytest.raises(FileError, match="is about another file than"):
        card_of(folder / "out.safetensors", report=report)


def test_a_folder_without_a_report_is_refused(folder: Path) -> None:
    with pytest.raises(FileError, match=r"has no report\.json"):
        card_of(folder / "out.safetensors", report=folder)


def test_a_picture_that_is_none_is_refused(folder: Path) -> None:
    report = report_about(folder / "out.safetensors", folder / "report")
    (report / "grid.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(FileError, match="is no PNG"):
        card_of(folder / "out.safetensors", report=report)


# -- the command, and what others have written -----------------------------------------------------------


def test_bake_writes_a_card_with_the_ledger(folder: Path) -> None:
    result = run("bake", folder / "recipe.yaml", "--card")
    assert result.exception is None
    assert "card " in result.stderr
    assert (
        "- lora.safetensors: 12 of 12 tensors applied (text\\_encoder ×1, unet ×3; LoRA ×4)"
        in (folder / "out.md").read_text()
    )


def test_a_card_of_somebody_else_stays(folder: Path) -> None:
    (folder / "out.md").write_text("my notes")
    for arguments in (("card", folder / "out.safetensors"), ("bake", folder / "recipe.yaml", "--card")):
        assert "lorabake did not write it, or somebody has edited it since" in str(run(*arguments).exception)
    assert (folder / "out.md").read_text() == "my notes"
    assert run("card", folder / "out.safetensors", "--overwrite").exception is None


def test_an_edited_card_stays_and_one_of_lorabakes_is_replaced(folder: Path) -> None:
    place = write_card(card_of(folder / "out.safetensors"))
    write_card(card_of(folder / "out.safetensors"))
    place.write_text(place.read_text().replace("# out", "# My model"))
    with pytest.raises(TargetError):
        write_card(card_of(folder / "out.safetensors"))


def test_the_readme_of_the_base_does_not_go_into_the_output(pipeline: Path) -> None:
    assert not (pipeline / "out" / "README.md").exists()
    notes = lorabake.plan(pipeline / "recipe.yaml").notes
    assert any(note.startswith("README.md is left out, because it speaks of the base") for note in notes)
    assert (pipeline / "out" / "unet" / "config.json").is_file()


def test_a_card_in_a_folder_is_no_fault_and_does_not_stop_a_bake(pipeline: Path) -> None:
    report = pipeline / "report"
    assert run("verify", pipeline / "recipe.yaml", "--stage", "structure", "--report", report, "-q").exception is None
    place = write_card(card_of(pipeline / "out", report=report))
    assert run("verify", pipeline / "recipe.yaml", "--stage", "structure").return_value == 0
    b.run(pipeline / "recipe.yaml", overwrite=False)
    write_card(card_of(pipeline / "out"))
    b.run(b.recipe(pipeline, base="base", loras=[], output={"path": "out", "dtype": "float32"}))
    assert not place.exists()


def test_a_readme_that_somebody_wrote_is_not_lost(pipeline: Path) -> None:
    readme = pipeline / "out" / "README.md"
    readme.write_text("my notes")
    with pytest.raises(TargetError, match=r"holds README\.md"):
        b.run(b.recipe(pipeline, base="base", loras=[], output={"path": "out", "dtype": "float32"}))
    assert readme.read_text() == "my notes"


def test_a_copy_of_the_bases_readme_may_go(pipeline: Path) -> None:
    shutil.copy(pipeline / "base" / "README.md", pipeline / "out" / "README.md")
    b.run(b.recipe(pipeline, base="base", loras=[], output={"path": "out", "dtype": "float32"}))
    assert not (pipeline / "out" / "README.md").exists()


def test_the_path_of_a_card() -> None:
    assert card_path(Path("a/b.c.safetensors")) == Path("a/b.c.md")


@pytest.mark.oracle
def test_the_snippet_for_diffusers_draws(tmp_path: Path) -> None:
    """The card of the demo, as a folder, is followed to the letter, in a process of its own."""
    pytest.importorskip("diffusers")
    demo = ROOT / "recipes" / "demo"
    base = {"base": str(demo / "shapes.safetensors"), "loras": [str(demo / "neon.safetensors")]}
    verify = {"prompts": ["a red circle"], "config": str(demo / "config")}
    b.run(
        b.recipe(tmp_path, **base, output={"path": "out", "layout": "diffusers", "dtype": "float32"}, verify=verify)
    )
    config = tmp_path / "out" / "unet" / "config.json"  # a header does not tell how large a family's pictures are
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 8}))
    text = text_of(tmp_path / "out")
    assert str(ROOT) not in text
    code = block(text, "python")
    assert 'DiffusionPipeline.from_pretrained("out", torch_dtype=torch.float32)' in code
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG[:8])


@pytest.mark.oracle
def test_the_snippet_for_a_file_calls_what_diffusers_has(folder: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    code = block(text_of(folder / "out.safetensors"), "python")
    assert "StableDiffusionPipeline.from_single_file(" in code
    assert callable(diffusers.StableDiffusionPipeline.from_single_file)


def test_no_path_of_this_machine_stands_in_a_card(folder: Path) -> None:
    b.recipe(folder, base=str(folder / "base.safetensors"), loras=[str(folder / "lora.safetensors")])
    assert run("bake", folder / "recipe.yaml", "--card", "--overwrite").exception is None
    text = (folder / "out.md").read_text()
    assert str(folder) not in text
    assert "- lora.safetensors: 12 of 12" in text
