"""A server on this machine that answers as the web and as Hugging Face's hub do, with scripted faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class Fault:
    """Answer one request otherwise: by a status, by so many bytes and no more, by other bytes, or from elsewhere."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    other_bytes: bytes | None = None
    ignores_range: bool = False


@dataclass
class Request:
    """Remember one request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


class Repo:
    """Hold a model of the hub: its branches, and the files of each commit."""

    def __init__(self) -> None:
        self.refs: dict[str, str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.apart = re.compile(r".*\.(safetensors|bin|ckpt)")  # what the hub stores apart from git
        self.private = False

    def add(self, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> None:
        self.commits[commit], self.refs[ref] = files, commit

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Server:
    """Answer on loopback; `faults` are used up in their order, one for each request of a path."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repos: dict[str, Repo] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[Request] = []
        self.stored: dict[str, bytes] = {}
        """What was uploaded apart from git, by SHA-256."""
        self.hooks: list[Callable[[Request], tuple[int, dict[str, str], bytes] | None]] = []
        self.address = ""

    def of(self, path: str, method: str = "GET") -> list[Request]:
        """List the requests of a path."""
        return [request for request in self.requests if request.path == path and request.method == method]

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        path = unquote(urlsplit(request.path).path)
        for hook in self.hooks:
            if (said := hook(request)) is not None:
                return said
        if path in self.files:
            return 200, {}, self.files[path]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._info(match[1], match[2] or "main")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolved(*match.groups())
        return self._publishing(request, path) or (404, {}, b"not here")

    def _info(self, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        repo = self.repos.get(name)
        if repo is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if (found := repo.files(revision)) is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        commit, files = found
        siblings = []
        for path, content in files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": git_sha1(content)}
            if repo.apart.fullmatch(path):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            siblings.append(entry)
        told = {"id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": siblings}
        return 200, {}, json.dumps(told).encode()

    def _resolved(self, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        found = self.repos[name].files(revision) if name in self.repos else None
        if found is None or path not in found[1]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        return 200, {"X-Repo-Commit": found[0]}, found[1][path]

    # -- publishing ------------------------------------------------------------------------------------------

    def _publishing(self, request: Request, path: str) -> tuple[int, dict[str, str], bytes] | None:
        if path == "/api/repos/create":
            said = json.loads(request.body)
            name = f"{said['organization']}/{said['name']}" if said.get("organization") else said["name"]
            if name in self.repos:
                return 409, {}, json.dumps({"error": "exists", "url": f"{self.address}/{name}"}).encode()
            self.repos[name] = repo = Repo()
            repo.private = bool(said.get("private") or said.get("visibility") == "private")
            repo.add({})
            return 200, {}, json.dumps({"url": f"{self.address}/{name}"}).encode()
        if path == "/api/validate-yaml":
            return 200, {}, b"{}"
        if path == "/api/whoami-v2":
            return 200, {}, b'{"name": "me", "type": "user", "orgs": []}'
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            return self._modes(self.repos[match[1]], json.loads(request.body))
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(request.body))
        if request.method == "PUT" and (match := re.fullmatch(r"/put/(\w+)", path)):
            self.stored[match[1]] = request.body
            return 200, {}, b""
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            return self._commit(match[1], request)
        return None

    def _modes(self, repo: Repo, said: Any) -> tuple[int, dict[str, str], bytes]:
        _, files = repo.files("main") or ("", {})
        answers = []
        for file in said["files"]:
            is_apart = repo.apart.fullmatch(file["path"]) is not None
            content = files.get(file["path"])
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if is_apart else git_sha1(content)
            mode = "lfs" if is_apart else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {}, json.dumps({"files": answers}).encode()

    def _batch(self, said: Any) -> tuple[int, dict[str, str], bytes]:
        objects = []
        for entry in said["objects"]:
            known = entry["oid"] in self.stored
            upload = {"upload": {"href": f"{self.address}/put/{entry['oid']}", "header": {}}}
            objects.append({**entry, **({} if known else {"actions": upload})})
        return 200, {}, json.dumps({"transfer": "basic", "objects": objects}).encode()

    def _commit(self, name: str, request: Request) -> tuple[int, dict[str, str], bytes]:
        lines = [json.loads(line) for line in request.body.splitlines()]
        repo = self.repos[name]
        files = dict((repo.files("main") or ("", {}))[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
        repo.add(files, LATER)
        told = {"commitUrl": f"{self.address}/{name}/commit/{LATER}", "commitOid": LATER}
        return 200, {}, json.dumps(told).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Server

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self) -> None:
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self._body())
        self.owner.requests.append(request)
        faults = self.owner.faults.get(self.path) or self.owner.faults.get(urlsplit(self.path).path) or []
        fault = faults.pop(0) if faults else Fault()
        if fault.status:
            self._send(fault.status, fault.headers, b"{}")
            return
        status, own, content = self.owner.answer(request)
        content = content if fault.other_bytes is None else fault.other_bytes
        start = re.fullmatch(r"bytes=(\d+)-", headers.get("range", ""))
        if status == 200 and start and not fault.ignores_range:
            first = int(start[1])
            if first >= len(content):
                self._send(416, {"Content-Range": f"bytes */{len(content)}"}, b"")
                return
            own = {**own, "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
            status, content = 206, content[first:]
        self._send(status, own, content, fault.drop_after)

    def _send(self, status: int, headers: dict[str, str], content: bytes, drop_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:drop_after])
        if drop_after is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server while a test needs it."""
    server = Server()
    handler = type("Handler", (_Handler,), {"owner": server})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        listening.daemon_threads = True
        server.address = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


def query(request: Request) -> dict[str, list[str]]:
    """Return the parameters of a request."""
    return parse_qs(urlsplit(request.path).query)
