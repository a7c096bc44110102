"""Publishing, against a stub of the hub on this machine: what is sent, what is not, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorabake.artifacts.publishing import publication_of
from lorabake.cli import main
from lorabake.errors import ArgumentError, FileError, SurroundingsError
from tests import builders as b
from tests.remote.conftest import TOKEN
from tests.remote.server import LATER, Fault, Repo, Server

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

from lorabake.artifacts.publish import publish

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own

CARD = "---\ntags: [lorabake]\n---\n# Out\n\n<!-- Written by lorabake. sha256:" + "0" * 64 + " -->\n"
PNG = b"\x89PNG\r\n\x1a\npicture"


@pytest.fixture(autouse=True)
def _logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Bake a file in a folder of its own, with a card and other people's files beside."""
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    path = b.run(b.recipe(tmp_path, output={"path": "made/out.safetensors"})).path
    path.with_suffix(".md").write_text(CARD)
    (path.parent / "notes.txt").write_text("mine")
    (path.parent / "other.safetensors").write_bytes(b"?")
    return path


def report(folder: Path, output: Path, verdict: str = "verified", digest: str | None = None) -> Path:
    said: dict[str, Any] = {"path": output.name, "of": "files", "digests": []}
    said["digests"] = [{"path": output.name, "sha256": digest or b.sha256(output)}]
    document = {"lorabake": "verify", "verdict": verdict, "environment": {"output": said}, "grid": {}}
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(document))
    (folder / "grid.png").write_bytes(PNG)
    return folder


def sent(server: Server) -> set[str]:
    """Return the names of the files in the last commit."""
    (commit,) = [request for request in server.requests if "/commit/" in request.path][-1:]
    lines = [json.loads(line) for line in commit.body.splitlines()]
    return {line["value"]["path"] for line in lines if line["key"] in ("file", "lfsFile")}


def test_a_file_goes_with_its_card_and_pictures(output: Path, server: Server) -> None:
    report(output.parent / "proof", output)
    done = publish(output, "me/out", private=True)
    repo = server.repos["me/out"]
    assert repo.private
    assert repo.commits[LATER] == {
        "README.md": CARD.encode(),
        "out.safetensors": output.read_bytes(),
        "report/grid.png": PNG,
    }
    assert done.commit_url == f"{server.address}/me/out/commit/{LATER}"
    assert {*done.sent} == {"README.md", "out.safetensors", "report/grid.png"}
    (commit,) = [request for request in server.requests if "/commit/" in request.path]
    summary = json.loads(commit.body.splitlines()[0])
    assert summary["value"]["summary"].startswith("Publish out.safetensors, baked by lorabake ")


def test_what_is_unchanged_costs_no_upload(output: Path, server: Server) -> None:
    publish(output, "me/out")
    assert not server.repos["me/out"].private
    server.requests.clear()
    done = publish(output, "me/out")
    assert (done.commit_url, done.sent) == (None, ())
    assert {*done.unchanged} == {"README.md", "out.safetensors"}
    assert not [request for request in server.requests if request.method in ("PUT", "POST")]
    output.with_suffix(".md").write_text(CARD.replace("# Out", "# Another"))
    done = publish(output, "me/out")
    assert (done.sent, done.unchanged) == (("README.md",), ("out.safetensors",))
    assert sent(server) == {"README.md"}
    assert not [request for request in server.requests if request.method == "PUT"]


def test_a_large_file_that_the_hub_knows_from_elsewhere_is_not_sent(output: Path, server: Server) -> None:
    server.stored[b.sha256(output)] = output.read_bytes()
    publish(output, "me/out")
    assert not [request for request in server.requests if request.method == "PUT"]
    assert server.repos["me/out"].commits[LATER]["out.safetensors"] == output.read_bytes()


def test_of_a_folder_other_peoples_files_stay(tmp_path: Path, server: Server) -> None:
    b.sd1_folder(tmp_path / "folder")
    b.sd1_lora(tmp_path / "lora.safetensors")
    path = b.run(b.recipe(tmp_path, base="folder", output={"path": "out"})).path
    made = {*b.tree(path)}
    (path / "secrets.txt").write_text("mine")
    (path / ".env").write_text("mine")
    (path / "README.md").write_text("# The base's own")
    (path / "unet/draft.png").write_bytes(PNG)
    publication = publication_of(path)
    assert {file.name for file in publication.files} == made
    assert {*publication.left_out} == {"secrets.txt", "unet/draft.png"}
    assert publication.notes == (f"no model card: `lorabake card {path}` writes one",)
    publish(path, "me/out")
    assert {*server.repos["me/out"].commits[LATER]} == made
    (path / "README.md").write_text(CARD)
    assert publish(path, "me/out").sent == ("README.md",)


def test_the_statement_and_embeddings_beside_go_along(output: Path) -> None:
    statement = output.with_name("out.intoto.json")
    statement.write_text("{}")
    b.save(output.with_name("out.cat.safetensors"), {"emb_params": b.Values()(1, 8)}, {"lorabake.token": "cat"})
    b.save(output.with_name("out.dog.safetensors"), {"emb_params": b.Values()(1, 8)})
    names = {file.name for file in publication_of(output).files}
    assert names == {"README.md", "out.safetensors", "out.cat.safetensors"}  # an empty statement is none


def test_a_card_brings_the_picture_that_it_shows(output: Path) -> None:
    mark = f"sha256:{'0' * 64} out.samples.png sha256:{'1' * 64} -->"
    output.with_suffix(".md").write_text(CARD.replace(f"sha256:{'0' * 64} -->", mark))
    output.with_name("out.samples.png").write_bytes(PNG)
    assert [file.name for file in publication_of(output).files] == ["README.md", "out.safetensors", "out.samples.png"]
    output.with_suffix(".md").write_text("# Somebody's notes")
    assert [file.name for file in publication_of(output).files] == ["out.safetensors"]


# -- what is refused -------------------------------------------------------------------------------------------


def test_what_lorabake_did_not_bake_is_refused(tmp_path: Path, server: Server) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    with pytest.raises(FileError, match="has no recipe in its header, so lorabake did not bake it"):
        publish(tmp_path / "base.safetensors", "me/out")
    with pytest.raises(FileError, match="no such file"):
        publish(tmp_path / "nothing.safetensors", "me/out")
    assert not server.requests


def test_what_failed_its_verification_is_refused(output: Path, server: Server) -> None:
    proof = report(output.parent / "proof", output, "mismatch")
    with pytest.raises(FileError, match="is not what its recipe says") as told:
        publish(output, "me/out")
    assert str(proof / "report.json") in told.value.args[0]
    assert not server.requests
    (proof / "report.json").unlink()
    publish(output, "me/out")


def test_reports_of_other_files_count_for_nothing(output: Path, tmp_path: Path) -> None:
    report(output.parent / "old", output, "mismatch", "0" * 64)
    report(output.parent / "other", tmp_path / "base.safetensors", "mismatch")
    (output.parent / "strange").mkdir()
    (output.parent / "strange/report.json").write_text("no JSON")
    publication = publication_of(output)
    assert publication.notes == (
        f"{output.parent / 'old'}: is about another version of this output, and counts for nothing",
    )
    with pytest.raises(FileError, match="the report is about another file"):
        publication_of(output, output.parent / "old")
    with pytest.raises(FileError, match="holds no report"):
        publication_of(output, tmp_path)


@pytest.mark.parametrize("name", ["out", "a/b/c", "me/..", "me/a--b", "", "me/ out"])
def test_names_that_the_hub_cannot_have_are_refused(output: Path, server: Server, name: str) -> None:
    with pytest.raises(ArgumentError, match="is no name on Hugging Face: write OWNER/NAME"):
        publish(output, name)
    assert not server.requests


def test_private_on_a_public_repository_is_refused(output: Path, server: Server) -> None:
    server.repos["me/out"] = Repo()
    server.repos["me/out"].add({})
    with pytest.raises(FileError, match="is there already, and everybody can see it"):
        publish(output, "me/out", private=True)
    assert [*server.repos["me/out"].commits.values()] == [{}]


def test_without_a_login_nothing_is_sent(output: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(FileError, match="nobody is logged in to Hugging Face") as told:
        publish(output, "me/out")
    assert told.value.args[1] == "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."
    assert not server.requests


def test_without_the_extra_it_says_what_to_install(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(SurroundingsError, match="huggingface_hub is not installed"):
        publish(output, "me/out")


@pytest.mark.parametrize(
    ("path", "fault", "told"),
    [
        ("/api/models/me/out", Fault(401), "it answers 401"),
        ("/api/models/me/out", Fault(403), "it answers 403"),
        ("/api/repos/create", Fault(403), "it answers 403"),
        ("/api/models/me/out/preupload/main", Fault(403), "it answers 403"),
        ("/api/models/me/out/commit/main", Fault(409), "somebody else changed it"),
        ("/api/models/me/out/commit/main", Fault(507), "the hub answers 507"),
        ("/put/{sha256}", Fault(403), "it answers 403"),
        ("/api/validate-yaml", Fault(400), "the hub does not take these files"),
    ],
    ids=str,
)
def test_refusals_of_the_hub_are_told(
    output: Path, server: Server, path: str, fault: Fault, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults[path.format(sha256=b.sha256(output))] = [fault]
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(output), "--repo", "me/out"])
    assert ended.value.code in (2, 3)
    out, err = capsys.readouterr()
    assert told in err
    assert TOKEN not in out + err


# -- the command -----------------------------------------------------------------------------------------------


def test_the_command_says_before_what_it_does(
    output: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(output), "--repo", "me/out", "--private", "--dry-run"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    size = f"{output.stat().st_size / 1000:.1f} kB"
    assert err.splitlines() == [
        f"file      README.md: {len(CARD)} B  ({output.with_suffix('.md')})",
        f"file      out.safetensors: {size}",
        f"total     2 files, {(output.stat().st_size + len(CARD)) / 1000:.1f} kB",
        "repo      me/out: private if it is new; the hub was not asked",
    ]
    assert out == "nothing was sent\n"
    assert not server.requests
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(output), "--repo", "me/out", "--private"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "repo      me/out: is new; private"
    assert out == f"published {server.address}/me/out/commit/{LATER}: 2 files sent\n"
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(output), "--repo", "me/out", "--private", "--quiet"])
    out, err = capsys.readouterr()
    assert (out, err) == ("published me/out: nothing to send, all 2 files are there already\n", "")
