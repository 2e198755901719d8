"""A local HTTP server with the Hub's endpoints to create repositories, commit folders and resolve files."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandIn:
    """Repositories as `{type/id: {revision: {path: bytes}}}`."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.validated: list[str] = []
        self.messages: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Files of `models/user/name` or `datasets/user/name`."""
        return self.repos[repo][revision]

    def put(self, repo: str, path: str, content: bytes, revision: str = "main") -> None:
        self.repos.setdefault(repo, {"main": {}}).setdefault(revision, {})[path] = content

    def commit_of(self, repo: str, revision: str) -> str:
        known = sorted(self.repos[repo].get(revision, {}).items())
        return hashlib.sha1(repr((repo, known)).encode()).hexdigest()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def reply(self, code, body=b"", headers=()):
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(code)
                for name, value in (("Content-Length", str(len(body))), *headers):
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def do_POST(self):
                body = self.body()
                if self.path == "/api/repos/create":
                    wanted = json.loads(body)
                    kind = (wanted.get("type") or "model") + "s"
                    owner = wanted.get("organization") or "jane"
                    repo = f"{kind}/{owner}/{wanted['name']}"
                    hub.repos.setdefault(repo, {"main": {}})
                    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
                    hub.private.setdefault(repo, private)
                    place = repo if kind == "datasets" else repo.removeprefix("models/")
                    return self.reply(200, {"url": f"{hub.endpoint}/{place}"})
                if self.path == "/api/validate-yaml":
                    hub.validated.append(json.loads(body)["content"])
                    return self.reply(200, {"errors": [], "warnings": []})
                if found := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/preupload/(.+)", self.path):
                    files = json.loads(body)["files"]
                    modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
                    return self.reply(200, {"files": modes})
                if found := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/branch/(.+)", self.path):
                    hub.repos[found[1]].setdefault(found[2], {})
                    return self.reply(200, {})
                if found := re.fullmatch(r"/api/(\w+/[^/]+/[^/]+)/commit/([^/?]+)(\?.*)?", self.path):
                    for line in body.splitlines():
                        entry = json.loads(line)
                        if entry["key"] == "header":
                            hub.messages.append(entry["value"]["summary"])
                        if entry["key"] == "file":
                            hub.put(
                                found[1], entry["value"]["path"], base64.b64decode(entry["value"]["content"]), found[2]
                            )
                    commit = hub.commit_of(found[1], found[2])
                    place = found[1].removeprefix("models/")
                    return self.reply(
                        200, {"commitUrl": f"{hub.endpoint}/{place}/commit/{commit}", "commitOid": commit}
                    )
                return self.reply(404, {"error": f"POST {self.path}"})

            def do_GET(self):
                found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
                if not found:
                    return self.reply(404, {"error": f"GET {self.path}"})
                repo = (found[1] or "models/") + found[2]
                if repo not in hub.repos:
                    return self.reply(401, b"", [("X-Error-Code", "RepoNotFound")])
                if found[3] not in hub.repos[repo]:
                    return self.reply(404, b"", [("X-Error-Code", "RevisionNotFound")])
                content = hub.files(repo, found[3]).get(found[4])
                commit = ("X-Repo-Commit", hub.commit_of(repo, found[3]))
                if content is None:
                    return self.reply(404, b"", [("X-Error-Code", "EntryNotFound"), commit])
                tag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.reply(200, content, [("ETag", tag), commit])

            do_HEAD = do_GET

        return Handler
