"""A Hub on the loopback interface for tests: what huggingface_hub asks of https://huggingface.co, in one process.

A repository is a few commits, a commit is a dict of path -> content, and branches and tags are names of commits. It
has no LFS or Xet: it answers "regular" for every upload, and huggingface_hub then uses neither.

What may go wrong on the way is put into `hub.trouble`: a function of the request's handler that answers in the place
of the Hub and returns True, or returns False to let the Hub answer. Those that tests share are at the end.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep  # by name: tests replace time.sleep, for the client's pauses
from typing import Any
from urllib.parse import unquote, urlsplit

ID = r"(?P<id>[\w.-]+/[\w.-]+)"
Files = dict[str, bytes]


@dataclass
class Repo:
    """One repository."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        """Add or replace files; returns the commit."""
        content = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        hashes = sorted((name, hashlib.sha1(body).hexdigest()) for name, body in content.items())
        commit = hashlib.sha1(repr((len(self.commits), hashes)).encode()).hexdigest()
        self.commits[commit] = content
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit."""
        return {**{commit: commit for commit in self.commits}, **self.tags, **self.branches}.get(revision)


class Server(ThreadingHTTPServer):
    """A thread for each connection; a client that has gone is no error of this server."""

    daemon_threads = True

    def handle_error(self, *address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*address)


class FakeHub:
    """The server. `requests` is what it was asked: (method, path)."""

    def __init__(self, token: str = "hf_test") -> None:
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, str] = {}
        self.requests: list[tuple[str, str]] = []
        self.trouble: Callable[[Handler], bool] = lambda request: False
        self.connections: list[socket.socket] = []
        self.server = Server(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, repo: str, files: Files) -> str:
        """Commit files to a repository, a new one or not; returns the commit."""
        return self.repos.setdefault(repo, Repo()).commit(files)

    def count(self, method: str, ending: str = "") -> int:
        """How many requests there were of this method, to paths of this ending."""
        return sum(asked == method and path.endswith(ending) for asked, path in self.requests)

    def close(self) -> None:
        """Stop, and break what connections a client has kept for later."""
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed before
                continue


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        """Answer a request of any method."""
        self.alter: Callable[[bytes], bytes] = bytes  # what is done to the body on its way
        self.pause = 0.0  # s, in the middle of the body
        self.cut: float | None = None  # the part of the body after which the connection breaks
        self.other: dict[str, str] = {}  # headers to send in the place of the Hub's
        quoted = urlsplit(self.path).path
        self.path = unquote(quoted)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, self.path))
        if self.hub.trouble(self):
            return
        for methods, route, respond in ROUTES:
            if self.command in methods and (found := re.fullmatch(route, quoted)):
                respond(self, **{name: unquote(value) for name, value in found.groupdict().items()})
                return
        self.refuse(404, "Unknown", f"no route {self.command} {self.path}")

    do_HEAD = do_GET = do_POST = answer

    def send(self, body: object, status: int = 200, **headers: str) -> None:
        """Send bytes as they are, anything else as JSON."""
        content = self.alter(body if isinstance(body, bytes) else json.dumps(body).encode())
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers, **self.other}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            middle = int(len(content) * (0.5 if self.cut is None else self.cut))
            self.wfile.write(content[:middle])
            sleep(self.pause)
            if self.cut is not None:
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.wfile.write(content[middle:])

    def refuse(self, status: int, code: str | None, message: str) -> None:
        """An error as the Hub sends it."""
        self.send({"error": message}, status, **({"X_Error_Code": code} if code else {}), X_Error_Message=message)

    def authorized(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def repo(self, id: str, revision: str = "main") -> tuple[Repo, str] | None:
        """The repository and the commit of a request; None if it was refused."""
        repo = self.hub.repos.get(id)
        if "Authorization" in self.headers and not self.authorized():
            self.refuse(401, None, "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not self.authorized()):
            self.refuse(404 if self.authorized() else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and not self.authorized():
            self.refuse(403, "GatedRepo", f"Access to model {id} is restricted")
        elif (commit := repo.resolve(revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo, commit
        return None

    # ---- routes

    def file(self, id: str, revision: str, name: str) -> None:
        if id in self.hub.moved:
            return self.send(b"", 307, Location=self.path.replace(id, self.hub.moved[id]))
        found = self.repo(id, revision)
        if found is None:
            return None
        content = found[0].commits[found[1]].get(name)
        if content is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return self.send(content, X_Repo_Commit=found[1], ETag=f'"{etag}"')

    def info(self, id: str) -> None:
        found = self.repo(id)
        if found:
            self.send({"id": id, "sha": found[1], "private": found[0].private, "siblings": []})

    def refs(self, id: str) -> None:
        found = self.repo(id)
        if found:
            self.send({"branches": [], "converts": [], "tags": _refs(found[0].tags)})

    def create(self) -> None:
        if not self.authorized():
            return self.refuse(401, None, "Invalid username or password.")
        wanted = json.loads(self.body)
        id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        url = f"{self.hub.url}/{id}"
        if id in self.hub.repos:
            return self.send({"error": "You already created this model repo", "url": url}, 409)
        self.hub.repos[id] = Repo(private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self.hub.add(id, {".gitattributes": b""})
        return self.send({"url": url, "name": id})

    def validate(self) -> None:
        self.send({"errors": [], "warnings": []})

    def preupload(self, id: str, revision: str) -> None:
        if self.repo(id, revision):
            files = [file["path"] for file in json.loads(self.body)["files"]]
            self.send({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})

    def commit(self, id: str, revision: str) -> None:
        found = self.repo(id, revision)
        if found:
            lines = [json.loads(line) for line in self.body.splitlines()]
            files = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
            commit = found[0].commit({name: base64.b64decode(content) for name, content in files.items()}, revision)
            self.send({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{id}/commit/{commit}"})

    def tag(self, id: str, revision: str) -> None:
        found = self.repo(id, revision)
        if found:
            found[0].tags[json.loads(self.body)["tag"]] = found[1]
            self.send({})


def _refs(names: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit} for name, commit in names.items()]


ROUTES = [
    (("HEAD", "GET"), rf"/{ID}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", Handler.file),
    (("GET",), rf"/api/models/{ID}", Handler.info),
    (("GET",), rf"/api/models/{ID}/refs", Handler.refs),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate),
    (("POST",), rf"/api/models/{ID}/preupload/(?P<revision>.+)", Handler.preupload),
    (("POST",), rf"/api/models/{ID}/commit/(?P<revision>.+)", Handler.commit),
    (("POST",), rf"/api/models/{ID}/tag/(?P<revision>.+)", Handler.tag),
]


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Fails unless what is in a folder, but for its `cache`, is afterwards as it was before."""

    def listing() -> dict[Path, Any]:
        paths = [path for path in folder.rglob("*") if not path.is_relative_to(folder / "cache")]
        return {p: p.is_file() and (p.read_bytes(), p.lstat().st_mtime_ns) for p in paths}

    before = listing()
    yield
    assert listing() == before


# ---- trouble


def failing(status: int, times: int = 10**9) -> Callable[[Handler], bool]:
    """Answers the first requests with an error, and no word of the Hub's."""
    left = iter(range(times))

    def trouble(request: Handler) -> bool:
        if next(left, None) is None:
            return False
        request.send(b"<html>not now</html>", status, Content_Type="text/html")
        return True

    return trouble


def page(methods: tuple[str, ...]) -> Callable[[Handler], bool]:
    """A proxy that answers requests of these methods with a login page."""

    def trouble(request: Handler) -> bool:
        if request.command in methods:
            request.send(b"<html>Please log in to the network.</html>", Content_Type="text/html")
        return request.command in methods

    return trouble


def altered(ending: str, alter: Callable[[bytes], bytes], times: int = 10**9) -> Callable[[Handler], bool]:
    """Alters the bodies of the first GET answers for paths of this ending."""
    left = iter(range(times))

    def trouble(request: Handler) -> bool:
        if request.command == "GET" and request.path.endswith(ending) and next(left, None) is not None:
            request.alter = alter
        return False

    return trouble


def cut(ending: str, times: int = 10**9, at: float = 0.5) -> Callable[[Handler], bool]:
    """Breaks the connection at that part of the body of the first GET answers for paths of this ending."""
    left = iter(range(times))

    def trouble(request: Handler) -> bool:
        if request.command == "GET" and request.path.endswith(ending) and next(left, None) is not None:
            request.cut = at
        return False

    return trouble


def lying(skip: int = 0, method: str = "HEAD", **headers: str) -> Callable[[Handler], bool]:
    """Sends other headers than the Hub's in the answers to requests of this method, but for the first ones."""
    left = iter(range(skip))

    def trouble(request: Handler) -> bool:
        if request.command == method and next(left, None) is None:
            request.other = headers
        return False

    return trouble


def endless(piece: bytes, seconds: float = 0.0, **headers: str) -> Callable[[Handler], bool]:
    """Answers GET with these bytes again and again, with a pause before each, until the client has gone."""

    def trouble(request: Handler) -> bool:
        if request.command == "GET":
            request.send_response(200)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            request.end_headers()
            while True:
                sleep(seconds)
                request.wfile.write(piece)
        return False

    return trouble


def slow(ending: str, seconds: float) -> Callable[[Handler], bool]:
    """Pauses in the middle of GET answers for paths of this ending."""

    def trouble(request: Handler) -> bool:
        if request.command == "GET" and request.path.endswith(ending):
            request.pause = seconds
        return False

    return trouble
