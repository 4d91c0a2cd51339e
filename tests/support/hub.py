"""A stand-in for the Hugging Face hub: as much of its protocol as huggingface_hub uses to push and to download files.

It takes every file as a regular one, in the commit itself: no LFS, no Xet.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub:
    """Repositories: files by commit, and the commit of each branch. requests: method and path of all, in order."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda _request: None  # called with each request, before it is answered
        self.url = ""

    def commit(self, repository: str, changes: dict[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch; its hash."""
        before = self.files(repository, branch) or {}
        files = {**before, **changes}
        digest = hashlib.sha1(repr([self.branches.get(repository), sorted(files.items())]).encode()).hexdigest()
        self.commits.setdefault(repository, {})[digest] = files
        self.branches.setdefault(repository, {})[branch] = digest
        return digest

    def resolve(self, repository: str, revision: str) -> str | None:
        """The commit that a revision stands for."""
        commit = self.branches.get(repository, {}).get(revision, revision)
        return commit if commit in self.commits.get(repository, {}) else None

    def files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        commit = self.resolve(repository, revision)
        return None if commit is None else self.commits[repository][commit]


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that runs until the block ends. Give its `url` to a process as HF_ENDPOINT."""
    here = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            here.requests.append(f"{self.command} {self.path}")
            here.before(here.requests[-1])
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(*found.groups())
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self._info(found[1], found[2] or "main")
            else:
                self._error(404, "EntryNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            here.requests.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            body = self._body()
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
                if name not in here.commits:
                    here.commit(name, {".gitattributes": b""})
                self._json({"url": f"{here.url}/{name}", "name": name, "id": name})
            elif re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
                asked = json.loads(body)["files"]
                kept = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
                self._json({"files": kept})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
                lines = [json.loads(line) for line in body.splitlines() if line.strip()]
                files = {
                    line["value"]["path"]: base64.b64decode(line["value"]["content"])
                    for line in lines
                    if line["key"] == "file"
                }
                digest = here.commit(found[1], files, found[2])
                self._json({"commitUrl": f"{here.url}/{found[1]}/commit/{digest}", "commitOid": digest})
            elif path == "/api/validate-yaml":
                self._json({"errors": [], "warnings": []})
            else:
                self._error(404, "EntryNotFound")

        def _file(self, repository: str, revision: str, name: str) -> None:
            commit, files = here.resolve(repository, revision), here.files(repository, revision)
            if repository not in here.commits:
                self._error(404, "RepoNotFound")
            elif files is None or commit is None:
                self._error(404, "RevisionNotFound")
            elif name not in files:
                self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
            else:
                etag = f'"{hashlib.sha256(files[name]).hexdigest()}"'
                self._answer(200, files[name], {"ETag": etag, "X-Repo-Commit": commit})

        def _info(self, repository: str, revision: str) -> None:
            files = here.files(repository, revision)
            if files is None:
                self._error(404, "RevisionNotFound" if repository in here.commits else "RepoNotFound")
                return
            siblings = [{"rfilename": name} for name in files]
            sha = here.resolve(repository, revision)
            self._json({"id": repository, "modelId": repository, "sha": sha, "siblings": siblings, "tags": []})

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _json(self, content: Any) -> None:
            self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
            self._answer(status, b"", {"X-Error-Code": code, **(headers or {})})

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_unused: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
