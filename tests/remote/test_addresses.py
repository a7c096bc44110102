"""Addresses in recipes: which are taken, which are refused, where they lead on this machine, and what outputs say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lorabake.baking import bake, plan
from lorabake.checking import check
from lorabake.errors import FileError, RecipeError
from lorabake.recipe import load_recipe, parse_recipe
from lorabake.recipe.options import Options
from lorabake.remote import address_of, fault_of, known_schemes
from lorabake.verification import embedded_recipe, verify
from lorabake.verification.findings import Status
from lorabake.visible import redacted
from tests import builders as b
from tests.remote.server import COMMIT, LATER

SHA = "a" * 64
TAKEN = {
    "hf://org/name": ("org/name", "main", ""),
    "hf://org/name/x.safetensors": ("org/name", "main", "x.safetensors"),
    "hf://org/name@v1.0/a/x.safetensors": ("org/name", "v1.0", "a/x.safetensors"),
    f"hf://org/name@{COMMIT}": ("org/name", COMMIT, ""),
    "hf://models/org/name/unet/": ("org/name", "main", "unet"),
    "hf://org/name@refs/pr/7/x.safetensors": ("org/name", "refs/pr/7", "x.safetensors"),
    "hf://org/name@a%2Fb/x.safetensors": ("org/name", "a/b", "x.safetensors"),
}
WEB = (
    "https://example.org/a/x.safetensors",
    "HTTPS://example.org/x?type=Model&format=SafeTensor",
    "http://localhost:1/x",
)
REFUSED = {
    "hf://name": "The owner is missing: write hf://OWNER/name for the whole model",
    "hf:/org/name": "Write an address of Hugging Face as",
    "hf://org/name/../x": "Write an address of Hugging Face as",
    "hf://org/name@..%2F..%2Fx/y": "Write an address of Hugging Face as",
    "hf://org/name@a%2F%2Fb/y": "Write an address of Hugging Face as",
    "hf://org/name@a%00b/y": "Write an address of Hugging Face as",
    "hf://org/name/a//x": "Write an address of Hugging Face as",
    "hf://datasets/org/name/x": "An address that begins with hf://datasets names no model",
    "https:/example.org/x": "This is no address of a file: write it as https://HOST/FILE",
    "https://example.org/a b": "This is no address of a file",
    "http://example.org/x": "Anyone on the way can change what http:// brings: write https://",
    "https://me:hunter2@example.org/x": "must not hold a password: take out what stands before @, and set LORABAKE",
    "https://example.org/x?a=1&token=hunter2": "must not hold a token: take token=… out of the address",
    "https://example.org/x?X-Amz-Signature=hunter2": "must not hold a token: take X-Amz-Signature=… out",
    "https://example.org/x?api_key=hunter2": "must not hold a token: take api_key=… out of the address",
}
PATHS = ("x.safetensors", "hf/x.safetensors", "https/x", "httpx", "a/hf:/x", "~/x", "/x", "C:\\x", "s3://bucket/x")


@pytest.mark.parametrize("text", TAKEN)
def test_addresses_of_the_hub_are_read(text: str) -> None:
    address = address_of(text)
    assert address is not None
    read = [getattr(address, name) for name in ("repo", "revision", "path")]
    assert (*read, address.written) == (*TAKEN[text], text)
    assert address.source == "/".join(filter(None, [f"hf://{TAKEN[text][0]}", TAKEN[text][2]]))


@pytest.mark.parametrize("text", WEB)
def test_addresses_of_the_web_need_a_digest(text: str, tmp_path: Path) -> None:
    address = address_of(text)
    assert address is not None
    assert address.needs_digest
    made = f"version: 1\nbase: {{path: '{text}'MORE}}\noutput: {{path: o.safetensors, dtype: float32}}\n"
    assert parse_recipe(made.replace("MORE", f", sha256: {SHA}"), tmp_path).base.portable_path == text
    with pytest.raises(RecipeError) as caught:
        parse_recipe(made.replace("MORE", ""), tmp_path)
    assert str(caught.value) == (
        f"recipe:2:7: {text!r} is an address of the web, and needs the SHA-256 of its file; "
        "write {path: https://…, sha256: 64 HEX DIGITS}"
    )


def test_a_web_address_of_the_hub_is_told_as_the_hubs(tmp_path: Path) -> None:
    text = "https://huggingface.co/org/name/resolve/main/a/x.safetensors"
    with pytest.raises(RecipeError, match=r"address of Hugging Face: write hf://org/name@main/a/x\.safetensors$"):
        parse_recipe(f"version: 1\nbase: {text}\noutput: {{path: o.safetensors, dtype: float32}}\n", tmp_path)


@pytest.mark.parametrize("text", REFUSED)
def test_other_addresses_are_refused_with_what_to_write(text: str, tmp_path: Path) -> None:
    assert address_of(text) is None
    with pytest.raises(RecipeError) as caught:
        parse_recipe(f"version: 1\nbase: '{text}'\noutput: {{path: o.safetensors, dtype: float32}}\n", tmp_path)
    assert REFUSED[text] in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", PATHS)
def test_paths_are_no_addresses(text: str) -> None:
    assert address_of(text) is None
    assert fault_of(text) is None


@pytest.mark.parametrize("text", [*TAKEN, *WEB, *REFUSED, *PATHS])
def test_no_text_is_of_two_schemes(text: str) -> None:
    assert sum(scheme.BEGINS.match(text) is not None for scheme in known_schemes()) == (text not in PATHS)


@pytest.mark.parametrize("text", ["hf://org/name/x", "https://example.org/x"])
def test_an_output_has_no_address(text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"This is an? (web )?address"):
        parse_recipe(f"version: 1\nbase: b.pt\noutput: {{path: '{text}', dtype: float32}}\n", tmp_path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:hunter2@host/x", "at https://…@host/x"),
        ("'https://h/x?type=Model&token=hunter2&a=1'", "'https://h/x?type=Model&token=…&a=1'"),
        ("https://h/x?X-Amz-Credential=hunter2", "https://h/x?X-Amz-Credential=…"),
        ("Authorization: Bearer hunter2hunter2", "Authorization: Bearer …"),
        ("hf_hunter2hunter2", "…"),
        ("the half_hunter2 of hf_1", "the half_hunter2 of hf_1"),
        ("https://h/x?type=Model", "https://h/x?type=Model"),
    ],
)
def test_secrets_are_taken_out_of_what_is_said(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert str(FileError(text)) == shown


def test_tokens_of_the_environment_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORABAKE_TOKEN_EXAMPLE_ORG", "quite-secret")
    assert redacted("it is quite-secret") == "it is …"


def test_a_secret_in_an_option_is_not_repeated(tmp_path: Path) -> None:
    text = "https://example.org/" + "a" * 60 + "?token=hunter2"
    for options in (
        Options(bases=(text,), loras=("x.pt",), output=Path("o.safetensors")),
        Options(bases=("b.pt",), loras=(text,), output=Path("o.safetensors")),
        Options(bases=("b.pt",), changes=(f"vae={text}",), output=Path("o.safetensors")),
        Options(bases=("b.pt",), changes=(f"base.{text}=3",), output=Path("o.safetensors")),
    ):
        with pytest.raises(RecipeError) as caught:
            options.recipe()
        assert "hunter2" not in str(caught.value)


def test_an_option_takes_an_address_and_a_strength() -> None:
    said = Options(bases=("hf://org/b",), loras=("hf://org/l/x.safetensors=0.5",), output=Path("o.safetensors"))
    recipe = said.recipe()
    assert [(lora.path, lora.strength) for lora in recipe.loras] == [("hf://org/l/x.safetensors", 0.5)]
    assert recipe.text is not None
    assert "hf://org/l/x.safetensors" in recipe.text


# -- the hub's cache -----------------------------------------------------------------------------------------


def cached(root: Path, files: dict[str, bytes], *, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """Make a model in the hub's cache, as its programs do; return the commit's folder."""
    model = root / "hf/hub/models--org--name"
    snapshot = model / "snapshots" / commit
    for name, content in files.items():
        blob = model / "blobs" / f"{commit[:8]}-{name.replace('/', '-')}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        place = snapshot / name
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(os.path.relpath(blob, place.parent), place)
    if ref is not None:
        (model / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (model / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[bytes, bytes]:
    """Make a base and a LoRA; return their bytes."""
    b.save(tmp_path / "made.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    return (tmp_path / "made.safetensors").read_bytes(), (tmp_path / "lora.safetensors").read_bytes()


def test_a_cached_model_is_baked_offline(tmp_path: Path, inputs: tuple[bytes, bytes]) -> None:
    snapshot = cached(tmp_path, {"x/base.safetensors": inputs[0], "lora.safetensors": inputs[1]})
    path = b.recipe(
        tmp_path,
        base="hf://org/name/x/base.safetensors",
        loras=[{"path": f"hf://org/name@{COMMIT}/lora.safetensors"}],
    )
    recipe = load_recipe(path)
    assert recipe.locate(recipe.base) == snapshot / "x/base.safetensors"
    assert recipe.commit_of(recipe.base) == COMMIT
    result = bake(recipe)
    plain = bake(b.recipe(tmp_path, base="made.safetensors", output={"path": "plain.safetensors"}))
    assert b.tensor_bytes(result.path) == b.tensor_bytes(plain.path)
    _, said, _ = b.header(result.path)
    assert json.loads(said["lorabake.inputs"])["base"]["name"] == "hf://org/name/x/base.safetensors"
    assert json.loads(said["lorabake.recipe"])["base"]["path"] == "hf://org/name/x/base.safetensors"
    assert str(tmp_path) not in json.dumps(said)
    assert "snapshots" not in json.dumps(said)
    findings = verify(embedded_recipe(result.path), result.path).findings
    assert {finding.status for finding in findings} == {Status.PASS, Status.SKIP}


def test_a_folder_in_the_cache_is_a_base(tmp_path: Path, inputs: tuple[bytes, bytes]) -> None:
    b.sd1_folder(tmp_path / "folder")
    files = dict(b.tree(tmp_path / "folder"))
    cached(tmp_path, files)
    result = bake(b.recipe(tmp_path, base="hf://org/name", output={"path": "out"}))
    plain = bake(b.recipe(tmp_path, base="folder", output={"path": "plain"}))
    assert b.tree(result.path).keys() == b.tree(plain.path).keys()
    said = b.header(result.path / "unet/diffusion_pytorch_model.safetensors")[1]
    assert json.loads(said["lorabake.inputs"])["base"]["path"] == "hf://org/name"
    assert str(tmp_path) not in json.dumps(said)


@pytest.mark.parametrize("missing", ["unet/diffusion_pytorch_model.safetensors", "vae", "scheduler"])
def test_a_folder_that_is_only_partly_there_is_refused(tmp_path: Path, missing: str) -> None:
    b.sd1_folder(tmp_path / "folder")
    files = {path: content for path, content in b.tree(tmp_path / "folder").items() if not path.startswith(missing)}
    index = json.loads(files["model_index.json"])
    index |= {"scheduler": ["diffusers", "PNDMScheduler"], "safety_checker": [None, None]}
    if missing != "scheduler":
        files["scheduler/scheduler_config.json"] = b"{}"
    cached(tmp_path, {**files, "model_index.json": json.dumps(index).encode()})
    with pytest.raises(
        FileError, match=rf"only a part of it is on this machine: {missing.partition('/')[0]} is missing"
    ):
        plan(b.recipe(tmp_path, base="hf://org/name", loras=[], output={"path": "out", "dtype": "float32"}))


def test_revisions_are_told_apart(tmp_path: Path) -> None:
    first = cached(tmp_path, {"x.safetensors": b"first"}, ref="v1")
    second = cached(tmp_path, {"x.safetensors": b"second"}, commit=LATER)
    recipe = parse_recipe("version: 1\nbase: b\noutput: {path: o, dtype: float32}\n", tmp_path)
    assert recipe.locate("hf://org/name/x.safetensors") == second / "x.safetensors"
    assert recipe.locate("hf://org/name@v1/x.safetensors") == first / "x.safetensors"
    assert recipe.locate(f"hf://org/name@{COMMIT}/x.safetensors") == first / "x.safetensors"
    pinned = recipe.pinned({"hf://org/name/x.safetensors": COMMIT})
    assert pinned.locate("hf://org/name/x.safetensors") == first / "x.safetensors"


def test_a_lock_cannot_lead_out_of_the_cache(tmp_path: Path) -> None:
    cached(tmp_path, {"x.safetensors": b"x"})
    recipe = parse_recipe("version: 1\nbase: b\noutput: {path: o, dtype: float32}\n", tmp_path)
    pinned = recipe.pinned({"hf://org/name/x.safetensors": "../blobs"})
    with pytest.raises(FileError, match="is no commit: a lock holds 40 hexadecimal digits"):
        pinned.locate("hf://org/name/x.safetensors")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hf://org/other/x.safetensors", "is not on this machine"),
        ("hf://org/name@v2/x.safetensors", "is not on this machine"),
        (f"hf://org/name@{LATER}/x.safetensors", f"commit {LATER[:12]} of it is not on this machine"),
        ("hf://org/name/y.safetensors", f"commit {COMMIT[:12]} of it is not whole on this machine"),
    ],
)
def test_what_is_not_there_is_told_with_how_to_fetch_it(tmp_path: Path, text: str, told: str) -> None:
    cached(tmp_path, {"x.safetensors": b"x"})
    with pytest.raises(FileError) as caught:
        plan(b.recipe(tmp_path, base=text, loras=[], output={"path": "o.safetensors", "dtype": "float32"}))
    assert caught.value.args[0] == f"{text}: {told}"
    assert caught.value.args[-1] == "Fetch it with lorabake.fetch(recipe)."


def test_the_cache_is_found_as_the_hubs_programs_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cached(tmp_path, {"x.safetensors": b"x"})
    recipe = parse_recipe("version: 1\nbase: b\noutput: {path: o, dtype: float32}\n", tmp_path)
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "hf/hub").rename(elsewhere)
    monkeypatch.setenv("HF_HUB_CACHE", str(elsewhere))
    found = recipe.locate("hf://org/name/x.safetensors")
    assert found == elsewhere / "models--org--name" / snapshot.relative_to(snapshot.parents[1]) / "x.safetensors"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "xdg/huggingface").mkdir(parents=True)
    elsewhere.rename(tmp_path / "xdg/huggingface/hub")
    assert recipe.locate("hf://org/name/x.safetensors").read_bytes() == b"x"


def test_a_check_without_models_takes_addresses(tmp_path: Path, inputs: tuple[bytes, bytes]) -> None:
    web = {"path": "https://example.org/lora.safetensors", "sha256": SHA}
    path = b.recipe(tmp_path, base="hf://org/name/base.safetensors", loras=[web])
    ((checked,),) = check([path])
    assert (checked.state, checked.missing) == ("checked", ("hf://org/name/base.safetensors", web["path"]))
    ((failed,),) = check([path], with_inputs=True)
    assert failed.error is not None
    assert failed.error.args[1:] == ("Fetch it with lorabake.fetch(recipe).",)
    cached(tmp_path, {"base.safetensors": inputs[0]})
    ((checked,),) = check([b.recipe(tmp_path, base="hf://org/name/base.safetensors")])
    assert checked.state == "planned"


def test_a_result_tells_inputs_as_they_are_written(tmp_path: Path, inputs: tuple[bytes, bytes]) -> None:
    cached(tmp_path, {"lora.safetensors": inputs[1]})
    result = bake(b.recipe(tmp_path, base="made.safetensors", loras=["hf://org/name/lora.safetensors"]))
    assert str(tmp_path / "hf") not in json.dumps(result.report())
