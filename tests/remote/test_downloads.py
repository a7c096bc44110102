"""Downloads from the web: whole and right under every fault of a server, with tokens for their own host only."""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from pathlib import Path

import pytest

from lorabake.baking import bake, plan
from lorabake.cli import main
from lorabake.errors import FileError, LorabakeError, SurroundingsError
from lorabake.recipe import Recipe, load_recipe
from lorabake.remote import download
from lorabake.sources.fetching import fetch
from tests import builders as b
from tests.remote.conftest import TOKEN
from tests.remote.server import Fault, Server, serving

CONTENT = bytes(range(256)) * 4096 * 3
SHA = hashlib.sha256(CONTENT).hexdigest()


def recipe(folder: Path, address: str, sha256: str = SHA) -> Recipe:
    said = {"path": address, "sha256": sha256}
    return load_recipe(b.recipe(folder, base=said, loras=[], output={"path": "o.safetensors", "dtype": "float32"}))


@pytest.fixture
def made(tmp_path: Path, server: Server) -> Recipe:
    server.files["/a/x.safetensors"] = CONTENT
    return recipe(tmp_path, f"{server.address}/a/x.safetensors")


def test_a_file_is_downloaded_once(made: Recipe, server: Server, tmp_path: Path) -> None:
    (first,) = fetch(made)
    assert first.path == tmp_path / "cache/downloads" / SHA / "x.safetensors"
    assert first.path.read_bytes() == CONTENT
    assert first.received == len(CONTENT)
    assert made.locate(made.base) == first.path
    (again,) = fetch(made)
    assert (again.path, again.received) == (first.path, 0)
    assert len(server.requests) == 1
    assert [path.name for path in first.path.parent.iterdir()] == ["x.safetensors"]


def test_another_address_of_the_same_file_costs_nothing(made: Recipe, server: Server, tmp_path: Path) -> None:
    fetch(made)
    (other,) = fetch(recipe(tmp_path, f"{server.address}/mirror/y.safetensors"))
    assert (other.path.name, other.received) == ("y.safetensors", 0)
    assert other.path.read_bytes() == CONTENT


def test_a_broken_connection_goes_on_where_it_broke(made: Recipe, server: Server, waits: list[float]) -> None:
    server.faults["/a/x.safetensors"] = [Fault(drop_after=1_000_000), Fault(drop_after=10)]
    (fetched,) = fetch(made)
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.received == len(CONTENT)
    ranges = [request.headers.get("range") for request in server.requests]
    assert ranges == [None, "bytes=1000000-", "bytes=1000010-"]
    assert waits == [1.0, 1.0]


def test_a_download_that_was_stopped_goes_on(made: Recipe, server: Server, waits: list[float]) -> None:
    server.faults["/a/x.safetensors"] = [Fault(drop_after=500_000)] + [Fault(drop_after=0)] * 4
    with pytest.raises(
        SurroundingsError, match="the download stopped after 5 tries: the connection ends before"
    ) as told:
        fetch(made)
    assert told.value.args[1] == "What came so far is kept: the same command goes on from there."
    server.requests.clear()
    (fetched,) = fetch(made)
    assert [request.headers.get("range") for request in server.requests] == ["bytes=500000-"]
    assert fetched.received == len(CONTENT) - 500_000
    assert fetched.path.read_bytes() == CONTENT


def test_a_server_without_ranges_begins_anew(made: Recipe, server: Server, waits: list[float]) -> None:
    server.faults["/a/x.safetensors"] = [Fault(drop_after=1_000_000), Fault(ignores_range=True)]
    (fetched,) = fetch(made)
    assert fetched.path.read_bytes() == CONTENT


def test_what_a_whole_partial_file_has_is_not_asked_for(made: Recipe, server: Server, tmp_path: Path) -> None:
    partial = tmp_path / "cache/downloads" / SHA / "x.safetensors.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CONTENT)
    (fetched,) = fetch(made)
    assert fetched.received == 0
    assert fetched.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "before", [b"x" * 1000, CONTENT + b"more", b"y" * len(CONTENT)], ids=["less", "more", "same"]
)
def test_a_partial_file_that_is_wrong_is_downloaded_anew(made: Recipe, tmp_path: Path, before: bytes) -> None:
    partial = tmp_path / "cache/downloads" / SHA / "x.safetensors.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(before)
    (fetched,) = fetch(made)
    assert fetched.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "other", [b"quite another file", CONTENT[:-1] + b"!", b""], ids=["short", "one byte", "empty"]
)
def test_other_bytes_are_refused(made: Recipe, server: Server, tmp_path: Path, other: bytes) -> None:
    server.files["/a/x.safetensors"] = other
    with pytest.raises(FileError, match="the server sends another file: its digest is ") as told:
        fetch(made)
    assert hashlib.sha256(other).hexdigest() in told.value.args[0]
    assert SHA in told.value.args[1]
    assert not (tmp_path / "cache/downloads" / SHA / "x.safetensors").exists()
    with pytest.raises(FileError, match="is not on this machine"):
        plan(made)
    server.files["/a/x.safetensors"] = CONTENT
    (fetched,) = fetch(made)
    assert fetched.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "kind", "told", "advice"),
    [
        (Fault(401), FileError, "127.0.0.1 asks for a login", "Set LORABAKE_TOKEN_127_0_0_1 in the environment"),
        (Fault(403), FileError, "127.0.0.1 does not let you have it", "LORABAKE_TOKEN_127_0_0_1"),
        (Fault(404), FileError, "there is no such file", "Look at the address in a browser."),
        (Fault(410), FileError, "the file was removed", "Look at the address in a browser."),
        (Fault(418), FileError, "127.0.0.1 answers 418", "Look at the address in a browser."),
        (Fault(429, {"Retry-After": "3600"}), SurroundingsError, "asks to wait for 3600 s", "goes on from there"),
        (Fault(302, {"Location": "ftp://example.org/x"}), LorabakeError, "", ""),
        (
            Fault(302, {"Location": "http://example.org/x"}),
            FileError,
            "sends the download on to http://example.org",
            "",
        ),
    ],
    ids=str,
)
def test_refusals_are_told(
    made: Recipe, server: Server, fault: Fault, kind: type[LorabakeError], told: str, advice: str
) -> None:
    server.faults["/a/x.safetensors"] = [fault]
    with pytest.raises(kind) as caught:
        fetch(made)
    assert told in caught.value.args[0]
    assert advice in caught.value.args[1]
    assert len(server.requests) == 1


def test_a_server_that_asks_to_wait_is_waited_for(made: Recipe, server: Server, waits: list[float]) -> None:
    server.faults["/a/x.safetensors"] = [
        Fault(429, {"Retry-After": "7"}), Fault(503), Fault(429, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
    ]  # fmt: skip
    (fetched,) = fetch(made)
    assert fetched.path.read_bytes() == CONTENT
    assert waits == [7.0, 2.0, 0.0]


def test_a_server_that_is_not_there_is_told(tmp_path: Path, waits: list[float]) -> None:
    with serving() as server:
        address = server.address
    with pytest.raises(SurroundingsError, match="stopped after 5 tries: Connection refused"):
        fetch(recipe(tmp_path, f"{address}/x.safetensors"))
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_disk_without_room_is_told_before(made: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        SurroundingsError, match=r"has not enough room: 3\.1 MB are still to come, and 1\.0 kB are free"
    ):
        fetch(made)


def test_two_digests_of_one_address_are_refused(tmp_path: Path, server: Server) -> None:
    said = [{"path": f"{server.address}/x", "sha256": digit * 64} for digit in "ab"]
    with pytest.raises(FileError, match="the recipe has two digests for it"):
        fetch(load_recipe(b.recipe(tmp_path, base="b.pt", loras=said)))


def test_processes_that_want_the_same_file_bring_it_once(made: Recipe, server: Server) -> None:
    threads = [threading.Thread(target=fetch, args=(made,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.locate(made.base).read_bytes() == CONTENT
    assert len(server.requests) == 1


# -- tokens ----------------------------------------------------------------------------------------------------


def test_a_token_goes_to_its_own_host_only(
    made: Recipe, server: Server, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setenv("LORABAKE_TOKEN_127_0_0_1", TOKEN)
    with serving() as other:
        other.files["/there.safetensors"] = CONTENT
        elsewhere = f"{other.address}/there.safetensors?Signature=hunter2"
        server.faults["/a/x.safetensors"] = [Fault(302, {"Location": "/b"}), Fault(302, {"Location": "/b"})]
        server.faults["/b"] = [Fault(302, {"Location": elsewhere})] * 2
        other.faults["/there.safetensors"] = [Fault(drop_after=1000)]
        (fetched,) = fetch(made)
        assert fetched.path.read_bytes() == CONTENT
        assert [request.headers.get("authorization") for request in server.requests] == [f"Bearer {TOKEN}"] * 4
        assert [request.headers.get("authorization") for request in other.requests] == [None] * 2
        assert other.requests[1].headers["range"] == "bytes=1000-"


@pytest.mark.parametrize("fault", [Fault(401), Fault(404), Fault(500), Fault(other_bytes=b"?")], ids=str)
def test_tokens_are_in_no_output(
    fault: Fault,
    made: Recipe,
    server: Server,
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LORABAKE_TOKEN_127_0_0_1", TOKEN)
    monkeypatch.setenv("LORABAKE_DEBUG", "1")
    caplog.set_level(logging.DEBUG)
    server.faults["/a/x.safetensors"] = [Fault(302, {"Location": f"/b?token={TOKEN}"})] * 5
    server.faults["/b"] = [fault] * 5
    with pytest.raises(SystemExit) as ended:
        main(["fetch", str(tmp_path / "recipe.yaml")])
    assert ended.value.code in (2, 3)
    out, err = capsys.readouterr()
    assert "error: " in err
    assert TOKEN not in out + err + caplog.text
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)


# -- commands --------------------------------------------------------------------------------------------------


def test_commands_fetch_when_they_are_asked_to(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    b.save(tmp_path / "made.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    server.files["/base.safetensors"] = (tmp_path / "made.safetensors").read_bytes()
    address = f"{server.address}/base.safetensors"
    path = b.recipe(tmp_path, base={"path": address, "sha256": b.sha256(tmp_path / "made.safetensors")})
    for command in ("plan", "bake"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(path)])
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert f"{address}: is not on this machine\n  The recipe names it at {path}:3:9.\n" in told
        assert "  Fetch it with `lorabake fetch RECIPE`" in told
    assert not server.requests
    with pytest.raises(SystemExit) as ended:
        main(["bake", str(path), "--download"])
    assert ended.value.code == 0
    err = capsys.readouterr().err
    assert f"fetched   {address}: " in err
    with pytest.raises(SystemExit) as ended:
        main(["fetch", str(path)])
    assert ended.value.code == 0
    assert f"fetched   {address}: is on this machine\n" in capsys.readouterr().err
    assert len(server.requests) == 1
    _, said, _ = b.header(tmp_path / "out.safetensors")
    assert address in said["lorabake.inputs"]
    assert "downloads" not in "".join(said.values())
    plain = bake(b.recipe(tmp_path, base="made.safetensors", output={"path": "plain.safetensors"}))
    assert b.tensor_bytes(plain.path) == b.tensor_bytes(tmp_path / "out.safetensors")


def test_what_the_outputs_of_a_matrix_need_is_fetched_once(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    b.save(tmp_path / "made.safetensors", b.sd1())
    sha256, address = b.sha256(tmp_path / "made.safetensors"), f"{server.address}/base.safetensors"
    server.files["/base.safetensors"] = (tmp_path / "made.safetensors").read_bytes()
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "version: 1\nmatrix: {strength: [0.5, 1]}\n"
        f"base: {{path: '{address}', sha256: {sha256}}}\n"
        "loras: [{path: lora.safetensors, strength: '${strength}'}]\noutput: {path: 'out-${strength}.safetensors'}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["bake", str(path), "--download"])
    assert ended.value.code == 2
    assert not server.requests, "bake takes one output"
    for words in (["--only", "out-1"], []):
        with pytest.raises(SystemExit) as ended:
            main(["fetch", str(path), *words])
        assert ended.value.code == 0
        assert capsys.readouterr().err.count(f"fetched   {address}: ") == 1
    assert len(server.requests) == 1


def test_what_a_baked_file_was_made_of_is_fetched(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    b.save(tmp_path / "made.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    server.files["/base.safetensors"] = (tmp_path / "made.safetensors").read_bytes()
    said = {"path": f"{server.address}/base.safetensors", "sha256": b.sha256(tmp_path / "made.safetensors")}
    path = b.recipe(tmp_path, base=said)
    fetch(load_recipe(path))
    result = bake(load_recipe(path))
    for name in ("made.safetensors", "recipe.yaml"):
        (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / "cache")
    server.requests.clear()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(result.path), "--download"])
    assert ended.value.code == 0
    assert len(server.requests) == 1
    assert "with other paths" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(SystemExit) as ended:
        main(["fetch", str(result.path)])
    assert ended.value.code == 0
    assert len(server.requests) == 2
