"""A small Hub: the endpoints that huggingface_hub calls, repositories on disk, and faults on request.

    python -m tests.hub.server --port 8765 --folder hub --token hf_local

It speaks LFS, in one part or several, and not Xet: clients need HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub.faults import Fault
from tests.hub.store import Entry, Refused, Repository, is_lfs

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_BARE = rf"/(?P<kind>datasets/)?{_REPO}"
_ROUTES: tuple[tuple[str, str, str], ...] = (
    ("GET", "whoami", r"/api/whoami-v2"),
    ("POST", "create", r"/api/repos/create"),
    ("DELETE", "delete", r"/api/repos/delete"),
    ("POST", "validate", r"/api/validate-yaml"),
    ("GET", "search", r"/api/models"),
    ("GET", "info", _API),
    ("GET", "info", rf"{_API}/revision/(?P<revision>[^/]+)"),
    ("GET", "auth", rf"{_API}/auth-check"),
    ("GET", "auth-write", rf"{_API}/auth-check/write"),
    ("GET", "refs", rf"{_API}/refs"),
    ("GET", "commits", rf"{_API}/commits/(?P<revision>[^/]+)"),
    ("GET", "tree", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?"),
    ("POST", "paths-info", rf"{_API}/paths-info/(?P<revision>[^/]+)"),
    ("POST", "preupload", rf"{_API}/preupload/(?P<revision>[^/]+)"),
    ("POST", "commit", rf"{_API}/commit/(?P<revision>[^/]+)"),
    ("POST", "tag", rf"{_API}/tag/(?P<revision>[^/]+)"),
    ("POST", "branch", rf"{_API}/branch/(?P<revision>[^/]+)"),
    ("POST", "batch", rf"{_BARE}\.git/info/lfs/objects/batch"),
    ("PUT", "upload", rf"/lfs/(?P<kind>models|datasets)/{_REPO}/(?P<oid>[0-9a-f]{{64}})(/(?P<part>\d+))?"),
    ("POST", "complete", rf"/lfs/(?P<kind>models|datasets)/{_REPO}/(?P<oid>[0-9a-f]{{64}})/complete"),
    ("POST", "verify", rf"/lfs/(?P<kind>models|datasets)/{_REPO}/(?P<oid>[0-9a-f]{{64}})/verify"),
    ("GET", "resolve", rf"{_BARE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
)
ENDPOINTS = tuple(dict.fromkeys(name for _, name, _ in _ROUTES))


@dataclass
class User:
    """Whom a token belongs to, and what it may do: `write` or `read`."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()


@dataclass
class Request:
    """One request: its endpoint, the parts of its path, and its body."""

    endpoint: str
    parts: dict[str, str]
    query: dict[str, list[str]]
    body: bytes
    user: User | None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    """What the server says."""

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, **headers: str) -> Answer:
        return cls(json.dumps(value).encode(), headers={"Content-Type": "application/json", **headers})


class Hub(ThreadingHTTPServer):
    """The server. Faults are put into `faults`; `requests` lists the endpoints in the order in which they were called.

    Args:
        folder: Where the repositories are.
        users: Users by token.
        port: 0 takes a free one.
        part_bytes: Larger files are sent in parts of this size.
        host: The address that it listens at.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        folder: Path,
        users: dict[str, User],
        port: int = 0,
        part_bytes: int = 50_000_000,
        *,
        host: str = "127.0.0.1",
        echo: bool = False,
    ) -> None:
        super().__init__((host, port), _Handler)
        self.folder, self.users, self.part_bytes, self.echo = folder, users, part_bytes, echo
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.uploaded: list[str] = []
        self.released = threading.Event()
        self.lock = threading.RLock()
        self.parts: dict[str, dict[int, bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_port}"

    def start(self) -> Hub:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def repository(self, name: str, kind: str = "models") -> Repository:
        return Repository(self.folder / kind / name)

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Returns what is published, without what the Hub itself puts into every repository."""
        repository = self.repository(name, kind)
        if not repository.exists:
            return {}
        found = repository.files(revision)
        return {path: repository.read(entry) for path, entry in found.items() if not path.startswith(".git")}

    def fault(self, request: Request) -> Fault | None:
        with self.lock:
            return next((fault for fault in self.faults if fault.strikes(request.endpoint)), None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients that leave are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub
    actions: ClassVar[dict[str, Callable[[Hub, Request], Answer]]] = {}

    def log_message(self, format: str, *args: Any) -> None:
        if self.server.echo:
            super().log_message(format, *args)

    def _serve(self) -> None:
        split = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        known = ((name, re.fullmatch(route, split.path)) for verb, name, route in _ROUTES if verb == method)
        endpoint, match = next(((name, found) for name, found in known if found), ("unknown", None))
        length = int(self.headers.get("Content-Length") or 0)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        parts = {key: unquote(value) for key, value in match.groupdict().items() if value} if match else {}
        request = Request(endpoint, parts, parse_qs(split.query), b"", self.server.users.get(token))
        with self.server.lock:
            self.server.requests.append(endpoint)
        fault = self.server.fault(request)
        if fault and fault.kind == "cut" and length:
            self.rfile.read(length // 2)
            return self._leave()
        request.body = self._body(length)
        if fault and fault.kind == "hang":
            self.server.released.wait()
            return self._leave()
        answer = self._answer(request, fault, bad_token=bool(token) and request.user is None)
        if fault and fault.kind == "lost":
            return self._leave()
        self._send(answer, cut=fault is not None and fault.kind == "cut")
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the names that http.server calls

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, request: Request, fault: Fault | None, *, bad_token: bool) -> Answer:
        if fault and fault.kind == "status":
            answer = _error(fault.status, fault.message, fault.code)
            answer.headers |= fault.headers
            if fault.retry_after is not None:
                answer.headers["Retry-After"] = str(fault.retry_after)
            return answer
        if bad_token:
            return _error(401, "Invalid credentials in Authorization header", "")
        action = self.actions.get(request.endpoint)
        if action is None:
            return _error(404, f"Nothing is at {self.path}", "EntryNotFound")
        try:
            with self.server.lock:
                answer = action(self.server, request)
        except Refused as refused:
            return _error(refused.status, refused.message, refused.code)
        if fault and fault.kind == "wrong hash":
            _spoil(self.server, request, answer)
        return self._in_range(answer)

    def _in_range(self, answer: Answer) -> Answer:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return answer
        size, begin = len(answer.body), int(wanted[1])
        end = min(int(wanted[2] or size - 1), size - 1)
        headers = {**answer.headers, "Content-Range": f"bytes {begin}-{end}/{size}"}
        return Answer(answer.body[begin : end + 1], 206, headers)

    def _send(self, answer: Answer, *, cut: bool) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self._leave()

    def _leave(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()


def _error(status: int, message: str, code: str) -> Answer:
    headers = {"X-Error-Message": message.splitlines()[0], "Content-Type": "application/json"}
    if code:
        headers["X-Error-Code"] = code
    return Answer(json.dumps({"error": message}).encode(), status, headers)


def _spoil(hub: Hub, request: Request, answer: Answer) -> None:
    """Makes what was stored or is listed another thing than what was sent."""
    if request.endpoint == "upload":
        path = hub.repository(request.parts["repo"], request.parts["kind"]).lfs_path(request.parts["oid"])
        path.write_bytes(bytes(reversed(path.read_bytes())))
    if request.endpoint == "tree":
        listed = json.loads(answer.body)
        for entry in listed:
            entry["oid"] = "0" * 40
            if "lfs" in entry:
                entry["lfs"]["oid"] = "0" * 64
        answer.body = json.dumps(listed).encode()


def _action(name: str) -> Callable[[Callable[[Hub, Request], Answer]], Callable[[Hub, Request], Answer]]:
    def register(function: Callable[[Hub, Request], Answer]) -> Callable[[Hub, Request], Answer]:
        _Handler.actions[name] = function
        return function

    return register


def _kind(request: Request) -> str:
    return request.parts.get("kind", "models").rstrip("/")


def _open(hub: Hub, request: Request, *, write: bool = False) -> Repository:
    """Returns a repository that this user may read, or write to."""
    name = request.parts["repo"]
    repository = hub.repository(name, _kind(request))
    if not repository.exists:
        raise Refused(404 if request.user else 401, "Repository not found", "RepoNotFound")
    member = request.user is not None and name.split("/")[0] in (request.user.name, *request.user.orgs)
    if repository.state["private"] and not member:
        raise Refused(404 if request.user else 401, "Repository not found", "RepoNotFound")
    if write and request.user is None:
        raise Refused(401, "Invalid username or password.")
    if write and (not member or request.user.role != "write"):
        raise Refused(403, "You don't have the rights to write to this repository")
    return repository


@_action("whoami")
def _whoami(hub: Hub, request: Request) -> Answer:
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    user = request.user
    orgs = [{"name": name, "type": "org", "roleInOrg": "write"} for name in user.orgs]
    token = {"displayName": "test", "role": user.role}
    return Answer.of({"type": "user", "name": user.name, "orgs": orgs, "auth": {"accessToken": token}})


@_action("create")
def _create(hub: Hub, request: Request) -> Answer:
    asked, user = request.json(), request.user
    if user is None:
        raise Refused(401, "Invalid username or password.")
    owner = asked.get("organization") or user.name
    kind = f"{asked.get('type', 'model')}s"
    repository = hub.repository(f"{owner}/{asked['name']}", kind)
    if user.role != "write" or owner not in (user.name, *user.orgs):
        raise Refused(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {owner}")
    url = f"{hub.url}/{'datasets/' * (kind == 'datasets')}{owner}/{asked['name']}"
    if repository.exists:
        answer = Answer.of({"error": "You already created this repo", "url": url})
        answer.status = 409
        return answer
    repository.create(private=asked.get("visibility") == "private")
    return Answer.of({"url": url})


@_action("validate")
def _validate(hub: Hub, request: Request) -> Answer:
    block = re.match(r"---\n(.*?)\n---", request.json()["content"], re.DOTALL)
    try:
        yaml.safe_load(block[1] if block else "")
    except yaml.YAMLError as error:
        answer = Answer.of({"errors": [{"message": str(error)}], "warnings": []})
        answer.status = 400
        return answer
    return Answer.of({"errors": [], "warnings": []})


@_action("search")
def _search(hub: Hub, request: Request) -> Answer:
    word, author = request.query.get("search", [""])[0].lower(), request.query.get("author", [""])[0]
    names = ["/".join(state.parent.parts[-2:]) for state in sorted((hub.folder / "models").glob("*/*/state.json"))]

    def fits(name: str) -> bool:
        return word in name.lower() and author in ("", name.split("/")[0])

    return Answer.of([{"id": name, "modelId": name, "tags": []} for name in names if fits(name)])


@_action("info")
def _info(hub: Hub, request: Request) -> Answer:
    repository = _open(hub, request)
    revision = request.parts.get("revision", "main")
    siblings = []
    for path, entry in repository.files(revision).items():
        lfs = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134} if entry.sha256 else None
        siblings.append({"rfilename": path, "size": entry.size, "blobId": entry.oid, "lfs": lfs})
    name, private = request.parts["repo"], repository.state["private"]
    known = {"id": name, "sha": repository.head(revision), "private": private, "siblings": siblings}
    return Answer.of({**known, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []})


@_action("auth")
def _auth(hub: Hub, request: Request) -> Answer:
    _open(hub, request)
    return Answer()


@_action("auth-write")
def _auth_write(hub: Hub, request: Request) -> Answer:
    _open(hub, request, write=True)
    return Answer()


@_action("refs")
def _refs(hub: Hub, request: Request) -> Answer:
    state = _open(hub, request).state

    def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]

    return Answer.of(
        {"branches": listed("heads", state["branches"]), "tags": listed("tags", state["tags"]), "converts": []}
    )


@_action("commits")
def _commits(hub: Hub, request: Request) -> Answer:
    return Answer.of(_open(hub, request).log(request.parts["revision"]))


@_action("tree")
def _tree(hub: Hub, request: Request) -> Answer:
    files = _open(hub, request).files(request.parts["revision"])
    below = f"{request.parts['path']}/" if "path" in request.parts else ""
    inside = {path: entry for path, entry in files.items() if path.startswith(below)}
    if below and not inside:
        raise Refused(404, "Entry not found", "EntryNotFound")
    deep = request.query.get("recursive", ["False"])[0].lower() in ("true", "1")
    folders = {folder for path in inside for folder in _folders(path) if folder.startswith(below)}
    listed = [entry.as_json(path) for path, entry in inside.items() if deep or "/" not in path[len(below) :]]
    listed += [
        {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
        for folder in sorted(folders)
        if deep or "/" not in folder[len(below) :]
    ]
    return Answer.of(listed)


def _folders(path: str) -> list[str]:
    return [parent.as_posix() for parent in Path(path).parents if parent != Path(".")]


@_action("paths-info")
def _paths_info(hub: Hub, request: Request) -> Answer:
    files = _open(hub, request).files(request.parts["revision"])
    asked = parse_qs(request.body.decode()).get("paths", [])
    found = [files[path].as_json(path) for path in asked if path in files]
    folders = {folder for path in files for folder in _folders(path)}
    found += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in asked if path in folders]
    return Answer.of(found)


@_action("preupload")
def _preupload(hub: Hub, request: Request) -> Answer:
    files = _open(hub, request, write=True).files(request.parts["revision"])
    ignored = _ignored(hub.repository(request.parts["repo"], _kind(request)), files)
    answers = []
    for file in request.json()["files"]:
        known = files.get(file["path"])
        mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
        oid = None if known is None else known.sha256 or known.oid
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": ignored(file["path"]), "oid": oid})
    return Answer.of({"files": answers})


def _ignored(repository: Repository, files: dict[str, Entry]) -> Callable[[str], bool]:
    """Returns what the repository's .gitignore says of a path; of its patterns those of names are known."""
    text = repository.read(files[".gitignore"]).decode() if ".gitignore" in files else ""
    return lambda path: any(fnmatch(path.rpartition("/")[2], line) for line in text.split())


@_action("batch")
def _batch(hub: Hub, request: Request) -> Answer:
    repository, kind = _open(hub, request, write=True), _kind(request)
    objects = []
    for wanted in request.json()["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        entry: dict[str, Any] = {"oid": oid, "size": size}
        path = repository.lfs_path(oid)
        if not path.is_file() or path.stat().st_size != size:
            place = f"{hub.url}/lfs/{kind}/{request.parts['repo']}/{oid}"
            upload: dict[str, Any] = {"href": f"{place}?signature=secret"}
            if size > hub.part_bytes:
                count = -(-size // hub.part_bytes)
                urls = {str(number): f"{place}/{number}?signature=secret" for number in range(1, count + 1)}
                upload = {"href": f"{place}/complete", "header": {"chunk_size": str(hub.part_bytes), **urls}}
            entry["actions"] = {"upload": upload, "verify": {"href": f"{place}/verify"}}
        objects.append(entry)
    return Answer.of({"transfer": "basic", "objects": objects})


@_action("upload")
def _upload(hub: Hub, request: Request) -> Answer:
    oid = request.parts["oid"]
    if request.query.get("signature") != ["secret"]:
        raise Refused(403, "SignatureDoesNotMatch")
    hub.uploaded.append(oid)
    if "part" in request.parts:
        hub.parts.setdefault(oid, {})[int(request.parts["part"])] = request.body
    else:
        _store(hub, request, request.body)
    return Answer(b"", headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


def _store(hub: Hub, request: Request, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != request.parts["oid"]:
        raise Refused(400, "The content does not have the hash that it was announced by")
    hub.repository(request.parts["repo"], request.parts["kind"]).put_lfs(request.parts["oid"], content)


@_action("complete")
def _complete(hub: Hub, request: Request) -> Answer:
    parts = hub.parts.pop(request.parts["oid"], {})
    _store(hub, request, b"".join(content for _, content in sorted(parts.items())))
    return Answer()


@_action("verify")
def _verify(hub: Hub, request: Request) -> Answer:
    repository, asked = hub.repository(request.parts["repo"], request.parts["kind"]), request.json()
    path = repository.lfs_path(asked["oid"])
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != asked["oid"]:
        path.unlink(missing_ok=True)
        raise Refused(422, "The object that arrived has another hash")
    return Answer()


@_action("commit")
def _commit(hub: Hub, request: Request) -> Answer:
    repository, branch = _open(hub, request, write=True), request.parts["revision"]
    head = repository.head(branch)
    files, title = repository.files(branch), ""
    for line in request.body.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            title = value["summary"]
            if value.get("parentCommit") not in (None, head):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
        elif key == "file":
            files[value["path"]] = repository.put_blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[value["path"]] = repository.lfs_entry(value["oid"], value["size"])
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            files = {path: entry for path, entry in files.items() if not path.startswith(value["path"])}
    oid = repository.commit(branch, title, files, head)
    url = f"{hub.url}/{request.parts['repo']}/commit/{oid}"
    return Answer.of({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None})


@_action("tag")
def _tag(hub: Hub, request: Request) -> Answer:
    repository, name = _open(hub, request, write=True), request.json()["tag"]
    if name in repository.state["tags"]:
        raise Refused(409, "Tag already exists")
    repository.state["tags"][name] = repository.head(request.parts["revision"])
    repository.save()
    return Answer()


@_action("branch")
def _branch(hub: Hub, request: Request) -> Answer:
    repository, name = _open(hub, request, write=True), request.parts["revision"]
    if name in repository.state["branches"]:
        raise Refused(409, "Reference already exists")
    repository.state["branches"][name] = repository.head(request.json().get("startingPoint") or "main")
    repository.save()
    return Answer()


@_action("resolve")
def _resolve(hub: Hub, request: Request) -> Answer:
    repository = _open(hub, request)
    head = repository.head(request.parts["revision"])
    entry: Entry | None = repository.files(head).get(request.parts["path"])
    if entry is None:
        answer = _error(404, "Entry not found", "EntryNotFound")
        answer.headers["X-Repo-Commit"] = head
        return answer
    etag = entry.sha256 or entry.oid
    headers = {"X-Repo-Commit": head, "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
    headers["Accept-Ranges"] = "bytes"
    if entry.sha256 is not None:
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(entry.size)}
    return Answer(repository.read(entry), headers=headers)


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description="A small Hub for tests and for trying out.")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--user", default="me")
    options = parser.parse_args()
    hub = Hub(options.folder, {options.token: User(options.user)}, options.port, echo=True)
    print(f"export HF_ENDPOINT={hub.url} HF_HUB_DISABLE_XET=1", flush=True)
    try:
        hub.serve_forever()
    except KeyboardInterrupt:
        hub.server_close()


if __name__ == "__main__":
    main()
