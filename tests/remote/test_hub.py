"""Downloads from Hugging Face's hub, played by a server on this machine, into the cache that its programs share."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lorabake
from lorabake.baking import bake, plan
from lorabake.cli import main
from lorabake.errors import FileError, LorabakeError, SurroundingsError
from lorabake.recipe import Recipe, load_recipe
from lorabake.sources.fetching import fetch
from tests import builders as b
from tests.remote.conftest import TOKEN
from tests.remote.server import COMMIT, LATER, Fault, Repo, Server, serving

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

CONTENT = bytes(range(256)) * 4096
FILE = "x.safetensors"
RESOLVED = f"/org/name/resolve/{COMMIT}/{FILE}"
INFO = "/api/models/org/name/revision/main"


@pytest.fixture
def repo(server: Server) -> Repo:
    repo = server.repos["org/name"] = Repo()
    repo.add({FILE: CONTENT, "config.json": b"{}", "README.md": b"# Name"})
    return repo


def recipe(folder: Path, base: object, **fields: object) -> Recipe:
    said = {"loras": [], "output": {"path": "o.safetensors", "dtype": "float32"}, **fields}
    return load_recipe(b.recipe(folder, base=base, **said))


def test_a_file_comes_into_the_shared_cache(tmp_path: Path, repo: Repo, server: Server) -> None:
    made = recipe(tmp_path, f"hf://org/name/{FILE}")
    (fetched,) = fetch(made)
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.commit, fetched.received) == (
        COMMIT,
        len(CONTENT) + 2,
    )  # with config.json
    assert made.locate(made.base) == fetched.path
    assert made.commit_of(made.base) == COMMIT
    for name, content in ((FILE, CONTENT), ("config.json", b"{}")):
        for revision in ("main", COMMIT):
            there = hub.try_to_load_from_cache("org/name", name, cache_dir=tmp_path / "hf/hub", revision=revision)
            assert isinstance(there, str)
            assert Path(there).read_bytes() == content
            assert os.path.islink(there)
    again = hub.hf_hub_download("org/name", FILE, cache_dir=tmp_path / "hf/hub", local_files_only=True)
    assert Path(again) == fetched.path


def test_a_branch_is_asked_for_again_and_a_commit_is_not(tmp_path: Path, repo: Repo, server: Server) -> None:
    fetch(recipe(tmp_path, f"hf://org/name@{COMMIT}/{FILE}"))
    asked = len(server.requests)
    assert fetch(recipe(tmp_path, f"hf://org/name@{COMMIT}/{FILE}"))[0].received == 0
    assert len(server.requests) == asked
    repo.add({FILE: CONTENT[::-1]}, LATER)
    made = recipe(tmp_path, f"hf://org/name/{FILE}")
    assert fetch(made)[0].commit == LATER
    assert made.locate(made.base).read_bytes() == CONTENT[::-1]
    pinned = made.pinned({f"hf://org/name/{FILE}": COMMIT})
    asked = len(server.requests)
    assert fetch(pinned)[0].commit == COMMIT
    assert pinned.locate(pinned.base).read_bytes() == CONTENT
    assert len(server.requests) == asked


def test_a_pinned_commit_is_fetched_and_a_newer_one_is_not(tmp_path: Path, repo: Repo, server: Server) -> None:
    repo.add({FILE: CONTENT[::-1]}, LATER)
    made = recipe(tmp_path, f"hf://org/name/{FILE}").pinned({f"hf://org/name/{FILE}": COMMIT})
    (fetched,) = fetch(made)
    assert (fetched.commit, fetched.path.read_bytes()) == (COMMIT, CONTENT)


def test_a_folder_brings_what_a_bake_reads(tmp_path: Path, server: Server) -> None:
    b.sd1_folder(tmp_path / "folder")
    files = dict(b.tree(tmp_path / "folder"))
    model = files["unet/diffusion_pytorch_model.safetensors"]
    more = {
        "unet/diffusion_pytorch_model.fp16.safetensors": model,
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/model.onnx": b"onnx",
        "whole.ckpt": b"ckpt",
        "picture.png": b"png",
        "LICENSE": b"free",
        ".gitattributes": b"hidden",
    }
    server.repos["org/name"] = Repo()
    server.repos["org/name"].add({**files, **more})
    made = recipe(tmp_path, "hf://org/name", output={"path": "out", "dtype": "float32"})
    (fetched,) = fetch(made)
    assert {*b.tree(fetched.path)} == {*files, "LICENSE"}
    result = bake(made)
    plain = bake(recipe(tmp_path, "folder", output={"path": "plain", "dtype": "float32"}))
    for name in b.tree(plain.path):
        if name.endswith(".safetensors"):
            assert b.tensor_bytes(result.path / name) == b.tensor_bytes(plain.path / name)
    with_variant = recipe(tmp_path, {"path": "hf://org/name", "variant": "fp16"})
    fetch(with_variant)
    assert (fetched.path / "unet/diffusion_pytorch_model.fp16.safetensors").read_bytes() == model
    (fetched.path / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileError, match=r"only a part .*: unet/diffusion_pytorch_model.safetensors is missing"):
        plan(made)


def test_shards_come_with_their_index(tmp_path: Path, server: Server) -> None:
    b.llama(tmp_path / "llama", shards=3)
    files = dict(b.tree(tmp_path / "llama"))
    server.repos["org/name"] = Repo()
    server.repos["org/name"].add({**files, "pytorch_model.bin": b"pickle"})
    for address in ("hf://org/name", "hf://org/name/model.safetensors.index.json"):
        (fetched,) = fetch(recipe(tmp_path, address))
        folder = fetched.path if fetched.path.is_dir() else fetched.path.parent
        assert {name for name in files if "safetensors" in name} <= {*b.tree(folder)}
        assert not (folder / "pytorch_model.bin").exists()
        plan(recipe(tmp_path, address, output={"path": "out", "dtype": "float32"}))


def test_an_adapters_folder_brings_its_configuration(tmp_path: Path, server: Server) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    lora = (tmp_path / "lora.safetensors").read_bytes()
    server.repos["org/name"] = Repo()
    files = {"a/adapter_model.safetensors": lora, "a/adapter_config.json": b"{}", "a/optimizer.bin": b"big"}
    server.repos["org/name"].add(files)
    (fetched,) = fetch(recipe(tmp_path, "base.safetensors", loras=["hf://org/name/a"]))
    assert {*b.tree(fetched.path)} == {"adapter_model.safetensors", "adapter_config.json"}


def test_a_broken_download_goes_on(tmp_path: Path, repo: Repo, server: Server, waits: list[float]) -> None:
    server.faults[RESOLVED] = [Fault(drop_after=1000), Fault(429, {"Retry-After": "3"})]
    (fetched,) = fetch(recipe(tmp_path, f"hf://org/name/{FILE}"))
    assert fetched.path.read_bytes() == CONTENT
    assert [request.headers.get("range") for request in server.of(RESOLVED)] == [None, "bytes=1000-", "bytes=1000-"]
    assert waits == [1.0, 3.0]


@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_other_bytes_are_refused(tmp_path: Path, repo: Repo, server: Server, name: str) -> None:
    size = len(repo.commits[COMMIT][name])
    server.faults[f"/org/name/resolve/{COMMIT}/{name}"] = [Fault(other_bytes=b"?" * size)]
    made = recipe(tmp_path, f"hf://org/name/{FILE}")
    with pytest.raises(FileError, match=f"/{name}: the server sends another file: its digest is"):
        fetch(made)
    assert not (tmp_path / "hf/hub/models--org--name/snapshots" / COMMIT / name).exists()
    fetch(made)
    assert made.locate(made.base).read_bytes() == CONTENT


CASES = [
    (INFO, Fault(401), FileError, "the hub", "log in with `hf auth login`, or set HF_TOKEN"),
    (
        INFO,
        Fault(403, {"X-Error-Code": "GatedRepo"}),
        FileError,
        "only to those who accept its terms",
        "/org/name in a",
    ),
    (INFO, Fault(404, {"X-Error-Code": "RepoNotFound"}), FileError, "has no model org/name, or does not", "HF_TOKEN"),
    (INFO, Fault(404, {"X-Error-Code": "RevisionNotFound"}), FileError, "no branch, tag or commit 'main'", ""),
    (INFO, Fault(429, {"Retry-After": "9999"}), SurroundingsError, "the hub answers 429", "Try again later."),
    (RESOLVED, Fault(401), FileError, "127.0.0.1 asks for a login", "log in with `hf auth login`, or set HF_TOKEN"),
    (RESOLVED, Fault(403), FileError, "127.0.0.1 does not let you have it", "accept its terms"),
    (RESOLVED, Fault(404), FileError, "there is no such file", ""),
    (
        RESOLVED,
        Fault(429, {"Retry-After": "9999"}),
        SurroundingsError,
        "asks to wait for 9999 s",
        "goes on from there",
    ),
]


@pytest.mark.parametrize(("path", "fault", "kind", "told", "advice"), CASES, ids=str)
def test_refusals_are_told(
    tmp_path: Path,
    repo: Repo,
    server: Server,
    path: str,
    fault: Fault,
    kind: type[LorabakeError],
    told: str,
    advice: str,
) -> None:
    server.faults[path] = [fault]
    with pytest.raises(kind) as caught:
        fetch(recipe(tmp_path, f"hf://org/name/{FILE}"))
    assert told in caught.value.args[0]
    assert advice in "".join(caught.value.args[1:])


def test_a_hub_that_asks_to_wait_is_waited_for(
    tmp_path: Path, repo: Repo, server: Server, waits: list[float]
) -> None:
    server.faults[INFO] = [Fault(429, {"Retry-After": "2"}), Fault(503)]
    assert fetch(recipe(tmp_path, f"hf://org/name/{FILE}"))[0].path.read_bytes() == CONTENT
    assert waits == [2.0, 2.0]


def test_what_the_hub_does_not_have_is_told(tmp_path: Path, repo: Repo, server: Server) -> None:
    with pytest.raises(FileError, match=r"org/name has no 'y\.safetensors' at 0123456789ab"):
        fetch(recipe(tmp_path, "hf://org/name/y.safetensors"))


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, repo: Repo, server: Server) -> None:
    repo.add({FILE: CONTENT, "../../../evil.json": b"{}"})
    with pytest.raises(FileError, match="has a file with an impossible name"):
        fetch(recipe(tmp_path, f"hf://org/name/{FILE}"))


def test_the_token_of_the_hub_stays_there(
    tmp_path: Path, repo: Repo, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as other:
        other.files["/cdn"] = CONTENT
        server.faults[RESOLVED] = [Fault(302, {"Location": f"{other.address}/cdn?X-Amz-Signature=hunter2"})]
        (fetched,) = fetch(recipe(tmp_path, f"hf://org/name/{FILE}"))
        assert fetched.path.read_bytes() == CONTENT
        sent = {request.headers.get("authorization") for request in server.requests if "org/name" in request.path}
        assert sent == {f"Bearer {TOKEN}"}
        assert [request.headers.get("authorization") for request in other.requests] == [None]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)


COMMAND = """
import sys
from lorabake.cli import main
sys.argv = ["lorabake", *{arguments!r}]
try:
    main()
except SystemExit as end:
    code = end.code
loaded = {{name.partition(".")[0] for name in sys.modules}}
print(code, *sorted(loaded & {{"huggingface_hub", "requests", "httpx", "httpx2", "torch"}}))
"""


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND.format(arguments=arguments)]
    own = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=own, timeout=60, check=False)


def test_commands_that_need_no_network_load_no_library_of_it(tmp_path: Path, repo: Repo, server: Server) -> None:
    b.save(tmp_path / "made.safetensors", b.sd1())
    repo.add({FILE: (tmp_path / "made.safetensors").read_bytes()})
    path = b.recipe(
        tmp_path, base=f"hf://org/name/{FILE}", loras=[], output={"path": "o.safetensors", "dtype": "float32"}
    )
    fetch(load_recipe(path))
    for arguments in (["--help"], ["fetch", "--help"], ["plan", "recipe.yaml"], ["inspect", f"hf://org/name/{FILE}"]):
        done = run(tmp_path, *arguments)
        assert done.stdout.splitlines()[-1] == "0", done


def test_a_login_is_in_no_output(tmp_path: Path, repo: Repo, server: Server) -> None:
    recipe(tmp_path, f"hf://org/name/{FILE}")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text(TOKEN)
    for path, fault in (
        (INFO, Fault(403, {"X-Error-Message": TOKEN})),
        (RESOLVED, Fault(403)),
        (RESOLVED, Fault(302)),
    ):
        server.requests.clear()
        fault.headers["Location"] = f"/elsewhere?token={TOKEN}"
        server.faults[path] = [fault]
        done = run(tmp_path, "fetch", "recipe.yaml", LORABAKE_DEBUG="1", HF_DEBUG="1")
        assert "error: " in done.stderr
        asked = [request.headers["authorization"] for request in server.requests if "/api/models/" in request.path]
        assert asked == [f"Bearer {TOKEN}"]
        assert TOKEN not in done.stdout + done.stderr


def test_offline_mode_is_obeyed(tmp_path: Path, repo: Repo, server: Server) -> None:
    recipe(tmp_path, f"hf://org/name/{FILE}")
    done = run(tmp_path, "fetch", "recipe.yaml", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to ask the hub" in done.stderr
    assert not server.requests


def test_without_the_extra_a_download_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SurroundingsError, match="huggingface_hub is not installed") as told:
        fetch(recipe(tmp_path, f"hf://org/name/{FILE}"))
    assert told.value.args[1] == "Install what Hugging Face takes: pip install 'lorabake[hub]'"


@pytest.mark.parametrize(
    ("commit", "said"),
    [(COMMIT, {}), (COMMIT, {"blobId": "../../x"}), ("../../x", {"blobId": "0" * 40}), (None, {"blobId": "0" * 40})],
)
def test_a_listing_without_digests_is_refused(
    tmp_path: Path, server: Server, commit: str | None, said: dict[str, str]
) -> None:
    told = {"id": "org/name", "sha": commit, "siblings": [{"rfilename": FILE, **said}]}
    server.hooks.append(lambda request: (200, {}, json.dumps(told).encode()) if "/api/" in request.path else None)
    with pytest.raises(FileError, match="the hub does not say what the files of org/name are"):
        fetch(recipe(tmp_path, f"hf://org/name/{FILE}"))


def test_a_lock_holds_the_commit(
    tmp_path: Path, repo: Repo, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CI", raising=False)
    b.save(tmp_path / "made.safetensors", b.sd1())
    b.save(tmp_path / "newer.safetensors", b.sd1(seed=1))
    repo.add({FILE: (tmp_path / "made.safetensors").read_bytes()})
    made = recipe(tmp_path, f"hf://org/name/{FILE}")
    fetch(made)
    assert made.file is not None
    lock = lorabake.lock(made.file).path
    assert COMMIT in lock.read_text()
    assert "hf://org/name" in lock.read_text()
    repo.add({FILE: (tmp_path / "newer.safetensors").read_bytes()}, LATER)
    for options, commit in (([], LATER), (["--frozen"], COMMIT)):
        shutil.rmtree(tmp_path / "hf")
        with pytest.raises(SystemExit) as ended:
            main(["fetch", *options, str(made.file)])
        assert ended.value.code == 0, capsys.readouterr()
        assert f"commit {commit[:12]}" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "hf")
    with pytest.raises(SystemExit) as ended:
        main(["bake", "--locked", "--download", str(made.file)])
    assert ended.value.code == 0, capsys.readouterr()
    fetch(made)  # now main leads to the newer commit
    with pytest.raises(SystemExit) as ended:
        main(["bake", "--frozen", "--force", str(made.file)])
    assert ended.value.code == 0, capsys.readouterr()
    due = b.run(
        b.recipe(tmp_path, base="made.safetensors", output={"path": "due.safetensors", "dtype": "float32"}, loras=[])
    )
    assert b.tensor_bytes(tmp_path / "o.safetensors") == b.tensor_bytes(due.path)
    lock.unlink()
    with pytest.raises(SystemExit) as ended:
        main(["fetch", "--frozen", str(made.file)])
    assert ended.value.code == 2
