"""The smallest Hub: what huggingface_hub asks for to describe, download and upload models, over loopback.

A test makes a `Hub`, enters `serving(hub)`, runs the client with HF_ENDPOINT and HF_HUB_DISABLE_XET=1, and looks at the hub's fields.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import http.server
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

SHA = "0123456789abcdef0123456789abcdef01234567"  # the commit of every folder that is served
WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pth", "*.pt", "*.onnx", "*.npz")


class Refusal(Exception):
    """An answer that is an error; `code` names the client's exception: GatedRepo, RepoNotFound, EntryNotFound, RevisionNotFound."""

    def __init__(self, status: int, error: str, code: str = "", **headers: str) -> None:
        self.status, self.error = status, error
        self.headers = {"X-Error-Code": code, **{k.replace("_", "-"): v for k, v in headers.items()}}


@dataclass
class Fault:
    """What befalls `times` requests, after `skip` others, in whose "METHOD path?query" the regular expression `where` is found.

    They get `status`; or, with `cut`, the connection breaks after so many bytes of a longer body: that of a PUT, which then
    did nothing, or the good answer to anything else, which then is done. With `until`, not before that is set.
    """

    where: str
    status: int = 500
    cut: int | None = None
    times: int = 1
    skip: int = 0
    error: str = "Internal Error"
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    until: threading.Event | None = None


class Entry(str):
    """A request: "METHOD path [range]", its parts, who asked (a token, or ""), the status of its answer (0: none) and
    the bytes of both bodies."""

    method = path = range = repo = token = ""
    status = received = sent = 0


class File:
    """Content, kept in git or, when `lfs`, in the store of large files behind a pointer; `oid` is git's hash of what it keeps."""

    def __init__(self, data: bytes, lfs: bool) -> None:
        self.data, self.lfs, self.size, self.sha256 = data, lfs, len(data), hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        kept = pointer.encode() if lfs else data
        self.oid = hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()
        self.etag = self.sha256 if lfs else self.oid


class Commit(NamedTuple):
    sha: str
    parent: str
    files: dict[str, File]
    title: str
    message: str


@dataclass
class Repo:
    """`objects`: the large files that commits may point to. `xet`: whether they have Xet hashes, without which none is copied."""

    id: str
    private: bool = False
    gated: str | bool = False
    region: str = "us"
    xet: bool = True
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, Commit] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)

    def commit(self, ref: str, parent: str, files: dict[str, File], title: str, message: str = "", sha: str = "") -> Commit:
        seed = repr([self.id, len(self.commits), ref, parent, title, sorted((p, f.oid) for p, f in files.items())])
        self.refs[ref] = Commit(sha or hashlib.sha1(seed.encode()).hexdigest(), parent, files, title, message)
        self.commits.append(self.refs[ref])
        return self.refs[ref]

    def at(self, revision: str = "main") -> Commit:
        for name, commit in [*self.refs.items(), *((c.sha, c) for c in self.commits)]:
            if name == revision:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def tree(self, revision: str) -> dict[str, dict[str, Any]]:
        """Files and folders by path, as the API describes them."""
        files, found = self.at(revision).files, {}
        for path in {p.as_posix() for name in files for p in Path(name).parents if p.name}:
            found[path] = {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
        for path, file in files.items():
            found[path] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
            if file.lfs:
                found[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            if file.lfs and self.xet:
                found[path]["xetHash"] = hashlib.sha256(file.sha256.encode()).hexdigest()
        return dict(sorted(found.items()))


class Hub:
    """`repos`: id -> folder, and those that are created. Any token is that of `user`, who writes to its own and its `orgs`' repos.

    `log` has every request; `sent` and `received` count the bytes of bodies by repo; `faults` are what goes wrong.
    Files of WEIGHTS or from `threshold` bytes on are large; those of more than `part` bytes are sent in such parts.
    With `leads`, downloads of large files are led to another address, which needs no token, takes none, and is good while `signed`
    stays what it is. With `dedup`, what one repo has needs no upload to another. `gated` refuses everything.
    """

    def __init__(self, repos: dict[str, Path] | None = None, user: str = "me", orgs: tuple[str, ...] = ("some-org",)) -> None:
        self.user, self.orgs, self.gated, self.dedup = user, orgs, False, True
        self.leads, self.signed = False, 0
        self.threshold, self.part = 10_000_000, 1 << 62
        self.log: list[Entry] = []
        self.sent, self.received = Counter[str](), Counter[str]()
        self.faults: list[Fault] = []
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, File] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.lock = threading.RLock()
        for name, folder in (repos or {}).items():
            paths = sorted(p for p in folder.rglob("*") if p.is_file())
            files = {p.relative_to(folder).as_posix(): File(p.read_bytes(), self.large(p.name, p.stat().st_size)) for p in paths}
            self.repos[name] = repo = Repo(name)
            repo.commit("main", "", files, "Upload model", sha=SHA)
            self.keep(repo, *(f for f in files.values() if f.lfs))

    def large(self, path: str, size: int) -> bool:
        return size >= self.threshold or any(fnmatch.fnmatch(path, w) for w in WEIGHTS)

    def keep(self, repo: Repo, *files: File) -> None:
        self.blobs |= {f.sha256: f for f in files}
        repo.objects |= {f.sha256 for f in files}

    def fault(self, line: str, size: int | None = None) -> Fault | None:
        """What befalls a request, or its body of `size` bytes."""
        with self.lock:
            for fault in self.faults:
                fits = fault.cut is None if size is None else fault.cut is not None and fault.cut < size
                if fits and fault.times and re.search(fault.where, line):
                    if not fault.skip:
                        fault.times -= 1
                        return fault
                    fault.skip -= 1
        return None

    @property
    def cut(self) -> int | None:
        """Where the next download that is longer breaks."""
        return next((f.cut for f in self.faults if f.times and f.cut is not None), None)

    @cut.setter
    def cut(self, size: int) -> None:
        self.faults.append(Fault("GET .*/resolve/", cut=size))


def card(files: dict[str, File]) -> dict[str, Any]:
    """The front matter of README.md: plain values, and lists of them."""
    matter = re.match(r"---\n(.*?\n)---", files["README.md"].data.decode(), re.DOTALL) if "README.md" in files else None
    found = re.findall(r"^([\w-]+):[ \t]*(.*)\n((?:[ \t]*- .*\n)*)", matter[1] if matter else "", re.MULTILINE)
    return {key: re.findall(r"- ['\"]?(.*?)['\"]?\n", items) if items else value.strip("'\"") for key, value, items in found}


ROUTES: list[tuple[re.Pattern[str], Callable[..., Any]]] = []
GROUPS = {"REPO": "[^/]+/[^/]+", "REV": "[^/]+", "PATH": ".+", "OID": "[0-9a-f]{64}", "PART": "[0-9]+"}


def route(pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Answers "METHOD path" with what the method makes of the body and of the GROUPS: JSON, or (status, JSON or bytes, headers)."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        named = re.sub("|".join(GROUPS), lambda m: f"(?P<{m[0].lower()}>{GROUPS[m[0]]})", pattern)
        ROUTES.append((re.compile(named), function))
        return function

    return add


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.line, self.query, self.base = f"{self.command} {self.path}", parse_qs(query), f"http://{self.headers['Host']}"
        matches = ((p.fullmatch(f"{self.command} {path}"), f) for p, f in ROUTES)
        match, function = next(((m, f) for m, f in matches if m), (None, None))
        groups: dict[str, Any] = {k: v and unquote(v) for k, v in match.groupdict().items()} if match else {}
        self.entry = Entry(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        self.entry.method, self.entry.path, self.entry.range = self.command, path, self.headers.get("Range", "")
        self.entry.repo, self.entry.token = groups.get("repo", ""), self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.log.append(self.entry)
        try:
            try:
                body = self.receive()
                if fault := self.hub.fault(self.line):
                    if fault.until:
                        fault.until.wait()
                    raise Refusal(fault.status, fault.error, fault.code, **fault.headers)
                if self.hub.gated:
                    raise Refusal(403, "Access to this model is restricted", "GatedRepo")
                if function is None:
                    raise Refusal(404, f"Cannot {self.line}")
                with self.hub.lock:
                    result = function(self, body, **groups | ({"repo": self.repo(groups["repo"])} if "repo" in groups else {}))
                self.reply(*(result if isinstance(result, tuple) else (200, result, {})))
            except Refusal as refusal:
                self.reply(refusal.status, {"error": refusal.error}, refusal.headers)
        except ConnectionError:  # broken here, or by the client
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def receive(self) -> bytes:
        size = int(self.headers.get("Content-Length", 0))
        fault = self.hub.fault(self.line, size) if self.command == "PUT" else None
        body = self.rfile.read(fault.cut if fault else size)
        self.entry.received = len(body)
        with self.hub.lock:
            self.hub.received[self.entry.repo] += len(body)
        if fault:
            raise ConnectionAbortedError
        return body

    def reply(self, status: int, data: Any, headers: dict[str, str]) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        shown = b"" if self.command == "HEAD" else body
        fault = None if self.command == "PUT" or status >= 400 else self.hub.fault(self.line, len(shown))
        shown = shown[: fault.cut] if fault else shown
        self.entry.status, self.entry.sent = status, len(shown)
        with self.hub.lock:
            self.hub.sent[self.entry.repo] += len(shown)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(shown)
        if fault:
            raise ConnectionAbortedError

    def writes(self, name: str) -> bool:
        return "Authorization" in self.headers and name.partition("/")[0] in (self.hub.user, *self.hub.orgs)

    def reader(self, repo: Repo) -> None:
        if repo.gated and not self.writes(repo.id):
            raise Refusal(403, f"Access to model {repo.id} is restricted", "GatedRepo")

    def writer(self, name: str, proposes: bool = False) -> None:
        if "Authorization" not in self.headers:
            raise Refusal(401, "Invalid username or password.", X_Error_Message="Invalid credentials in Authorization header")
        if not proposes and not self.writes(name):
            raise Refusal(403, f"You don't have the rights to write to {name}")

    def repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.command != "PUT" and not self.writes(name)):  # a PUT's address is its permission
            raise Refusal(404 if "Authorization" in self.headers else 401, "Repository not found", "RepoNotFound")
        return repo

    @route("GET /api/whoami-v2")
    def whoami(self, body: bytes) -> Any:
        self.writer(self.hub.user)
        orgs, token = [{"type": "org", "name": name} for name in self.hub.orgs], {"displayName": "token", "role": "write"}
        person = {"name": self.hub.user, "fullname": self.hub.user.title(), "avatarUrl": "/avatar.svg", "isPro": False}
        return {"type": "user", **person, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}

    @route("GET /api/models/REPO(?:/revision/REV)?")
    def info(self, body: bytes, repo: Repo, rev: str | None) -> Any:
        commit, siblings, data = repo.at(rev or "main"), [], card(repo.at(rev or "main").files)
        for path, file in commit.files.items():
            lfs = {"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 134}} if file.lfs else {}
            siblings.append({"rfilename": path} | ({"size": file.size, "blobId": file.oid} | lfs if "blobs" in self.query else {}))
        tags = [*data.get("tags", []), *(f"{k}:{data[k]}" for k in ("license", "base_model") if k in data)]
        info = {"id": repo.id, "sha": commit.sha, "private": repo.private, "gated": repo.gated, "disabled": False, "tags": tags}
        info |= {"siblings": siblings, "cardData": data} | {k: data[k] for k in ("library_name", "pipeline_tag") if k in data}
        return {k: v for k, v in info.items() if k in ("id", *self.query.get("expand", info))}

    @route("GET /api/models/REPO/tree/REV(?:/PATH)?")
    def tree(self, body: bytes, repo: Repo, rev: str, path: str | None) -> Any:
        entries, start = repo.tree(rev), f"{path}/" if path else ""
        if path and path not in entries:
            raise Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
        deep = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        return [e for p, e in entries.items() if p.startswith(start) and (deep or "/" not in p[len(start) :])]

    @route("POST /api/models/REPO/paths-info/REV")
    def paths_info(self, body: bytes, repo: Repo, rev: str) -> Any:
        entries = repo.tree(rev)
        return [entries[p] for p in parse_qs(body.decode()).get("paths", []) if p in entries]

    @route("(?:GET|HEAD) /REPO/resolve/REV/PATH")
    def resolve(self, body: bytes, repo: Repo, rev: str, path: str) -> Any:
        self.reader(repo)
        commit = repo.at(rev)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
        file = commit.files[path]
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"'}
        if file.lfs and self.hub.leads and self.command == "GET":
            port = self.headers["Host"].rpartition(":")[2]
            return 302, b"", headers | {"Location": f"http://localhost:{port}/store/{file.sha256}?signed={self.hub.signed}"}
        return self.content(file, headers)

    @route("GET /store/OID")
    def store(self, body: bytes, oid: str) -> Any:
        if self.query["signed"] != [str(self.hub.signed)] or "Authorization" in self.headers:
            raise Refusal(403, "Request has expired, or is authorized twice")
        return self.content(self.hub.blobs[oid], {"ETag": f'"{oid}"'})

    def content(self, file: File, headers: dict[str, str]) -> Any:
        if "Range" not in self.headers:
            return 200, file.data, headers
        first, _, last = self.entry.range.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, file.size - int(last))
        stop = min(int(last) + 1, file.size) if first and last else file.size
        if start >= file.size:
            raise Refusal(416, "Range Not Satisfiable", Content_Range=f"bytes */{file.size}")
        return 206, file.data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{file.size}"}

    @route("POST /api/repos/create")
    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        self.writer(name)
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.base}/{name}"}, {}
        self.hub.repos[name] = Repo(name, asked.get("private", False) or asked.get("visibility") == "private")
        rules = "".join(f"{w} filter=lfs diff=lfs merge=lfs -text\n" for w in WEIGHTS)
        self.hub.repos[name].commit("main", "", {".gitattributes": File(rules.encode(), False)}, "initial commit")
        return {"url": f"{self.base}/{name}", "name": name}

    @route("POST /api/validate-yaml")
    def validate_yaml(self, body: bytes) -> Any:
        empty = not json.loads(body)["content"].startswith("---")
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}] * empty}

    @route("POST /api/models/REPO/preupload/REV")
    def preupload(self, body: bytes, repo: Repo, rev: str) -> Any:
        self.writer(repo.id, "create_pr" in self.query)
        asked, files, answer = json.loads(body), repo.at(rev).files, []
        for path, size in ((one["path"], one["size"]) for one in asked["files"]):
            ignored = any(fnmatch.fnmatch(path, line) for line in asked.get("gitIgnore", "").splitlines())
            told = {"path": path, "uploadMode": "lfs" if self.hub.large(path, size) else "regular", "shouldIgnore": ignored}
            answer.append(told | ({"oid": files[path].etag} if path in files else {}))
        return {"files": answer}

    @route(r"POST /REPO\.git/info/lfs/objects/batch")
    def batch(self, body: bytes, repo: Repo) -> Any:
        self.writer(repo.id, proposes=True)
        asked, objects = json.loads(body), f"{self.base}/{repo.id}.git/info/lfs/objects"
        for one in asked["objects"]:
            if one["oid"] in (self.hub.blobs if self.hub.dedup else repo.objects):
                self.hub.keep(repo, self.hub.blobs[one["oid"]])
                continue
            href, header = f"{objects}/{one['oid']}", {}
            if one["size"] > self.hub.part and "multipart" in asked["transfers"]:
                parts = range(1, -(-one["size"] // self.hub.part) + 1)
                header = {"chunk_size": str(self.hub.part)} | {f"{n:05}": f"{href}/{n}" for n in parts}
            one["actions"] = {"upload": {"href": href, "header": header}, "verify": {"href": f"{objects}/verify"}}
        return {"objects": asked["objects"]}

    @route(r"PUT /REPO\.git/info/lfs/objects/OID(?:/PART)?")
    def upload(self, body: bytes, repo: Repo, oid: str, part: str | None = None) -> Any:
        if part:
            self.hub.parts[oid, int(part)] = body
            return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        file = File(body, True)
        if file.sha256 != oid:
            raise Refusal(400, f"{file.size} bytes were received, and their sha256 is not {oid}")
        self.hub.keep(repo, file)
        return {}

    @route(r"POST /REPO\.git/info/lfs/objects/OID")
    def complete(self, body: bytes, repo: Repo, oid: str) -> Any:
        parts = [self.hub.parts.pop((oid, part["partNumber"]), b"") for part in json.loads(body)["parts"]]
        return self.upload(b"".join(parts), repo, oid)

    @route(r"POST /REPO\.git/info/lfs/objects/verify")
    def verify(self, body: bytes, repo: Repo) -> Any:
        asked = json.loads(body)
        if asked["oid"] not in repo.objects or self.hub.blobs[asked["oid"]].size != asked["size"]:
            raise Refusal(404, f"{asked['oid']} is not there")
        return {}

    @route("POST /api/models/REPO/lfs-files/duplicate")
    def duplicate(self, body: bytes, repo: Repo) -> Any:
        """Lets another repo of the same region point to large files of this one."""
        asked, failed = json.loads(body), []
        target = self.repo(asked["target"]["name"])
        self.reader(repo)
        self.writer(target.id)
        for oid in (one["sha256"] for one in asked["files"]):
            if oid not in repo.objects or repo.region != target.region:
                failed.append({"sha256": oid, "error": "File not found" if oid not in repo.objects else "The storage regions differ"})
            else:
                self.hub.keep(target, self.hub.blobs[oid])
        succeeded = len(asked["files"]) - len(failed)
        return {"success": not failed, "processed": len(asked["files"]), "succeeded": succeeded, "failed": failed}

    @route("POST /api/models/REPO/commit/REV")
    def commit(self, body: bytes, repo: Repo, rev: str) -> Any:
        proposes = "create_pr" in self.query
        self.writer(repo.id, proposes)
        header, *operations = [json.loads(line) for line in body.splitlines() if line]
        told, parent, files = header["value"], repo.at(rev).sha, dict(repo.at(rev).files)
        if rev not in repo.refs or told.get("parentCommit", parent) != parent:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for key, value in ((o["key"], o["value"]) for o in operations):
            path = value["path"].rstrip("/")
            if key == "file":
                files[path] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in repo.objects:
                    raise Refusal(400, f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
                files[path] = self.hub.blobs[value["oid"]]
            elif not (gone := [p for p in files if p == path or (key == "deletedFolder" and p.startswith(f"{path}/"))]):
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            else:
                files = {p: f for p, f in files.items() if p not in gone}
        ref = f"refs/pr/{len(repo.refs)}" if proposes else rev
        commit = repo.commit(ref, parent, files, told["summary"], told.get("description", ""))
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{self.base}/{repo.id}/commit/{commit.sha}"}
        return answer | ({"pullRequestUrl": f"{self.base}/{repo.id}/discussions/{ref[8:]}"} if proposes else {})


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The server's address, while the context lasts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
