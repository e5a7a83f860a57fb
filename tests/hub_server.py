"""The smallest read-only Hub: what huggingface_hub asks for to describe and download a model, over loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`repos`: id -> folder. `log` holds "METHOD path [range]" of every request; `sent` counts the bytes of bodies.

    `status` answers any request for a repo with that code; `cut` breaks the connection once after so many bytes of a file.
    """

    def __init__(self, repos: dict[str, Path]) -> None:
        self.repos, self.log, self.sent = repos, [], 0  # type: ignore[var-annotated]
        self.status: int | None = None
        self.cut: int | None = None
        self.gated = False


def handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.log.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            repo = next((r for r in hub.repos if f"/{r}/" in f"{path}/"), None)
            if hub.gated:
                return self.reply(403, b"", {"X-Error-Code": "GatedRepo"}, body)
            if repo is None or hub.status:
                return self.reply(hub.status or 404, b"{}", {} if hub.status else {"X-Error-Code": "RepoNotFound"}, body)
            folder = hub.repos[repo]
            if path.startswith("/api/models/"):
                return self.reply(
                    200, json.dumps(self.listing(repo, folder, "/tree/" in path)).encode(), {"Content-Type": "application/json"}, body
                )
            name = path.partition("/resolve/")[2].partition("/")[2]
            if not (folder / name).is_file():
                return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA}, body)
            self.file((folder / name).read_bytes(), body)

        def listing(self, repo: str, folder: Path, tree: bool) -> object:
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            if tree:
                return [{"type": "file", "path": str(p.relative_to(folder)), "size": p.stat().st_size, "oid": "0" * 40} for p in files]
            return {
                "id": repo,
                "modelId": repo,
                "sha": SHA,
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": str(p.relative_to(folder))} for p in files],
            }

        def file(self, data: bytes, body: bool) -> None:
            etag = hashlib.sha256(data).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
            start, stop, code = 0, len(data), 200
            if given := self.headers.get("Range"):
                first, _, last = given.removeprefix("bytes=").partition("-")
                start, stop, code = int(first), min(int(last) + 1 if last else len(data), len(data)), 206
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data = data[start:stop]
            if body and hub.cut is not None and len(data) > hub.cut:
                self.reply(code, data, headers, body, cut=hub.cut)
                hub.cut = None
                self.close_connection = True
                self.connection.close()
                return
            self.reply(code, data, headers, body)

        def reply(self, code: int, data: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data[:cut])
                hub.sent += len(data[:cut])

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The server's address, while the context lasts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
