"""A hub of one data set on loopback, as far as Hugging Face's libraries ask one for files.

python run_hub.py REPOSITORY FOLDER; prints the address (`HF_ENDPOINT`), and serves until it ends.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    repository: str
    files: Mapping[str, bytes]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        known = self._path().startswith(f"/api/datasets/{self.repository}/paths-info/")
        paths = json.loads(asked)["paths"] if known else []
        self._json([entry for path in paths for entry in self._entries() if entry["path"] == path])

    def log_message(self, *_: object) -> None: ...

    def _answer(self, body: bool) -> None:
        path, api = self._path(), f"/api/datasets/{self.repository}"
        place, _, file = path.partition(f"/resolve/{COMMIT}/")
        if file and place == f"/datasets/{self.repository}" and file in self.files:
            self._send(self.files[file], {"ETag": f'"{self._oid(file)}"'}, body)
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._json({"id": self.repository, "sha": COMMIT, "siblings": []})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            below = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            self._json(self._listed(below, "recursive=true" in self.path.lower()))
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _listed(self, below: str, all: bool) -> list[dict[str, Any]]:
        found = [e for e in self._entries() if e["path"].startswith(below and f"{below}/")]
        if all:
            return found
        depth = below.count("/") + 1 if below else 0
        return [entry for entry in found if entry["path"].count("/") == depth]

    def _entries(self) -> list[dict[str, Any]]:
        folders = {file.rpartition("/")[0] for file in self.files} - {""}
        return [
            *({"type": "directory", "path": folder, "oid": COMMIT} for folder in sorted(folders)),
            *(
                {"type": "file", "path": file, "size": len(content), "oid": self._oid(file)}
                for file, content in self.files.items()
            ),
        ]

    def _oid(self, file: str) -> str:
        return hashlib.sha1(self.files[file]).hexdigest()

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _json(self, values: object) -> None:
        self._send(json.dumps(values).encode(), {"Content-Type": "application/json"}, body=True)

    def _send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)


def main(repository: str, folder: Path) -> None:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    Hub.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    Hub.repository = repository
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
