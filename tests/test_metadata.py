"""A header is shown in groups, and edited in place: the tensors never move, and a crash never damages the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from lorabake.artifacts.hashes import hash_path
from lorabake.cli import lorabake
from lorabake.errors import FileError, TargetError
from lorabake.planning import Plan, plan
from lorabake.recipe import load_recipe
from lorabake.sources import resolve
from lorabake.storage.fields import GROUPS, READ, group_of
from lorabake.verification.findings import Finding, PromptSample, Samples, Status
from lorabake.verification.thumbnail import MOST, data_url, thumbnail_finding
from lorabake.writing import header as editing
from tests import builders as b
from tests.documents import check

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metadata.md"


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    """Bake a file."""
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False), metadata={"config": "{}"})
    b.sd1_lora(tmp_path / "lora.safetensors")
    return b.run(b.recipe(tmp_path, output={"metadata": {"author": "me"}})).path


def call(*arguments: object) -> Any:
    return CliRunner().invoke(lorabake, ["metadata", *map(str, arguments)])


def said(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:  # another reader than lorabake's
        return dict(file.metadata())


# -- Show ------------------------------------------------------------------------------------------------


def test_fields_are_grouped(baked: Path) -> None:
    told = check(json.loads(call(baked, "--json").stdout))
    groups = [field["group"] for field in told["fields"]]
    assert groups == sorted(groups, key=GROUPS.index)
    assert {field["field"]: field["text"] for field in told["fields"]} == said(baked)
    assert told["room"] >= 1024
    words = call(baked).stdout
    assert "\nlorabake  lorabake.device" in words
    assert "\nloading   config" in words


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("modelspec.title", "identity"),
        ("author", "identity"),
        ("ss_network_dim", "training"),
        ("sd_merge_recipe", "training"),
        ("lorabake.version", "lorabake"),
        ("_quantization_metadata", "loading"),
        ("quantization_config", "loading"),
        ("modelspec.noise_process", "loading"),
        ("zz", "other"),
    ],
)
def test_groups(name: str, group: str) -> None:
    assert group_of(name) == group


@pytest.mark.parametrize("name", READ)
def test_the_page_names_who_reads_a_field(name: str) -> None:
    assert f"| `{name}` | {READ[name]} |" in PAGE.read_text()


def test_what_programs_read_is_in_the_bake_byte_for_byte(tmp_path: Path) -> None:
    texts = {name: json.dumps({"of": name, "ü": [1]}, ensure_ascii=False) for name in READ}
    texts |= {"format": "pt", "_quantization_metadata": '{"layers": {}}', "quantization_config": "{}"}
    markers = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0), "edm_mean": torch.ones(3)}
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False) | markers, metadata=texts)
    b.sd1_lora(tmp_path / "lora.safetensors")
    out = b.bake_sd1(tmp_path)
    found = said(out)
    assert {name: found[name] for name in READ} == texts
    old, new = b.tensor_bytes(tmp_path / "base.safetensors"), b.tensor_bytes(out)
    assert {name: new[name] for name in markers} == {name: old[name] for name in markers}


# -- Edit ------------------------------------------------------------------------------------------------


def test_an_edit_changes_the_header_alone(baked: Path) -> None:
    before, old, size = hash_path(baked), said(baked), baked.stat().st_size
    ended = call(baked, "--set", "title=Müller's", "--set", "own=x=y", "--remove", "author")
    assert ended.exit_code == 0
    assert "SHA-256, AutoV2 and CRC-32" in ended.stdout
    assert said(baked) == {**{k: v for k, v in old.items() if k != "modelspec.author"}, "own": "x=y", **TITLE}
    after = hash_path(baked)
    assert baked.stat().st_size == size
    assert after.files[0].autov3 == before.files[0].autov3
    assert after.content == before.content
    assert after.files[0].autov2 != before.files[0].autov2
    assert [path.name for path in baked.parent.iterdir() if "lorabake-header" in path.name] == []


TITLE = {"modelspec.title": "Müller's"}


def test_an_edit_and_its_reverse_give_the_same_bytes(baked: Path) -> None:
    before = baked.read_bytes()
    assert call(baked, "--set", "title=other").exit_code == 0
    assert baked.read_bytes() != before
    assert call(baked, "--set", "title=out").exit_code == 0
    assert baked.read_bytes() == before
    assert "said so before" in call(baked, "--set", "title=out").stdout


def test_other_writers_headers_can_be_edited(tmp_path: Path) -> None:
    path = tmp_path / "spaced.safetensors"
    text = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"a": "b" * 40}})
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"1234")
    assert call(path, "--set", "a=c").exit_code == 0
    assert said(path) == {"a": "c"}
    assert path.read_bytes()[-4:] == b"1234"


def test_a_header_without_room_stays_as_it_is(baked: Path) -> None:
    before = baked.read_bytes()
    ended = call(baked, "--set", "description=" + "x" * 100_000)
    assert isinstance(ended.exception, TargetError)
    assert "the header has" in str(ended.exception)
    assert "output.metadata" in "\n".join(ended.exception.lines)
    assert baked.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "lorabake.version=2"], "lorabake writes it itself"),
        (["--set", "hash_sha256=0x0"], "computed from the tensors"),
        (["--remove", "_quantization_metadata"], "how weights are stored"),
        (["--set", "title"], "write NAME=TEXT"),
        (["--set", "=x"], "write NAME=TEXT"),
        (["--set", "title=a", "--remove", "modelspec.title"], "set or removed twice"),
        (["--remove", "nowhere"], "has no field nowhere"),
    ],
)
def test_wrong_edits(baked: Path, arguments: list[str], words: str) -> None:
    before = baked.read_bytes()
    ended = call(baked, *arguments)
    assert isinstance(ended.exception, FileError)
    assert words in str(ended.exception)
    assert baked.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "out.safetensors.sig",
        "out.sig",
        "model.sig",
        "bundle.sigstore.json",
        "out.safetensors.sigstore",
        "out.intoto.json",
        "../{folder}.sig",
        "../model.sig",
    ],
)
def test_a_signed_file_is_not_edited(baked: Path, name: str) -> None:
    signature = baked.parent / name.format(folder=baked.parent.name)
    signature.write_text("signed")
    ended = call(baked, "--set", "title=x")
    signature.unlink()
    assert isinstance(ended.exception, TargetError)
    assert f"{signature.name} vouches for its bytes" in str(ended.exception)


def test_a_signature_of_another_file_does_not_matter(baked: Path) -> None:
    (baked.parent / "lora.safetensors.sig").write_text("signed")
    assert call(baked, "--set", "title=x").exit_code == 0


def test_links_are_not_edited(baked: Path) -> None:
    os.symlink(baked, baked.with_name("link.safetensors"))
    assert "is a link to" in str(call(baked.with_name("link.safetensors"), "--set", "title=x").exception)
    os.link(baked, baked.with_name("other.safetensors"))
    assert "has 2 names" in str(call(baked, "--set", "title=x").exception)


# -- Crashes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [0, 40, 10_000])
def test_an_edit_that_breaks_off_is_taken_back(baked: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    before = baked.read_bytes()

    def tear(fd: int, raw: bytes) -> None:
        os.pwrite(fd, raw[:written], 8)
        raise KeyboardInterrupt  # as a crash would, it leaves what is there

    with monkeypatch.context() as patched:
        patched.setattr(editing, "_put", tear)
        with pytest.raises(KeyboardInterrupt):
            editing.edit(baked, {"torn": "x" * 200})
    assert (baked.parent / ".out.safetensors.lorabake-header").exists()
    ended = call(baked)
    assert ended.exit_code == 0
    assert "an earlier edit broke off" in ended.stderr
    assert baked.read_bytes() == before
    assert call(baked, "--set", "title=x").exit_code == 0


def test_a_journal_of_another_file_is_no_journal(baked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tear(fd: int, raw: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(editing, "_put", tear)
        with pytest.raises(KeyboardInterrupt):
            editing.edit(baked, {"torn": "x"})
    content = baked.read_bytes()
    (baked.parent / "new").write_bytes(content)
    os.replace(baked.parent / "new", baked)  # another file has taken the place
    assert call(baked).exit_code == 0
    assert baked.read_bytes() == content


def test_what_is_no_journal_is_left_alone(baked: Path) -> None:
    journal = baked.parent / ".out.safetensors.lorabake-header"
    journal.write_text("mine")
    assert "is no header that lorabake kept" in str(call(baked, "--set", "title=x").exception)
    assert journal.read_text() == "mine"


# -- Thumbnails ------------------------------------------------------------------------------------------


def sampled(height: int = 64, width: int = 96) -> Samples:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Samples("diffusers", {}, (PromptSample("a cat", 0, {"baked": noise}, {}),))


def planned(baked: Path, **output: object) -> Plan:
    return plan(resolve(load_recipe(b.recipe(baked.parent, output=output))))


def test_the_picture_goes_into_the_header_and_moves_nothing(baked: Path) -> None:
    path = b.run(b.recipe(baked.parent, output={"thumbnail": "verify"})).path
    before, raw = hash_path(path), path.read_bytes()
    made = planned(path, thumbnail="verify")
    finding = thumbnail_finding(made, path, sampled(), ())
    assert finding is not None
    assert (finding.status, finding.check) == (Status.PASS, "samples.thumbnail")
    assert said(path)["modelspec.thumbnail"].startswith("data:image/jpeg;base64,/9j/")
    after = hash_path(path)
    assert (after.files[0].data_sha256, after.size) == (before.files[0].data_sha256, before.size)
    b.run(b.recipe(path.parent, output={"thumbnail": "verify"}), overwrite=False)  # it is this bake all the same
    assert path.read_bytes() == raw


def test_the_largest_picture_fits(baked: Path) -> None:
    path = b.run(b.recipe(baked.parent, output={"thumbnail": "verify"})).path
    finding = thumbnail_finding(planned(path, thumbnail="verify"), path, sampled(1000, 1200), ())
    assert finding is not None
    assert finding.status is Status.PASS
    assert len(data_url(sampled(1000, 1200).pictures[0].pictures["baked"])) <= MOST


def test_no_picture_where_none_is_wanted_or_the_checkpoint_is_wrong(baked: Path) -> None:
    wanted, plain = planned(baked, thumbnail="verify"), planned(baked)
    wrong = [Finding("weights.x", Status.FAIL, "", "", "", "")]
    assert thumbnail_finding(plain, baked, sampled(), ()) is None
    assert thumbnail_finding(wanted, baked, None, ()) is None
    skipped = thumbnail_finding(wanted, baked, sampled(), wrong)
    assert skipped is not None
    assert (skipped.status, "not right" in skipped.note) == (Status.SKIP, True)


def test_a_signed_checkpoint_gets_no_picture(baked: Path) -> None:
    (baked.parent / "model.sig").write_text("signed")
    finding = thumbnail_finding(planned(baked, thumbnail="verify"), baked, sampled(), ())
    assert finding is not None
    assert (finding.status, "vouches" in finding.note) == (Status.SKIP, True)
