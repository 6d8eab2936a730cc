"""A stand-in for the hub: its HTTP interface, as far as `publish` and `hf://` speak it."""

import contextlib
import hashlib
import http.server
import json
import re
import threading

TOKEN = "hf_" + "a" * 34
_HANDLERS = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/models/(\w+/\w+)(?:/revision/main)?", "info"),
    ("POST", r"/api/models/(\w+/\w+)/preupload/main", "preupload"),
    ("POST", r"/(\w+/\w+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(\w+)", "store"),
    ("POST", r"/api/models/(\w+/\w+)/commit/main", "commit"),
    ("HEAD|GET", r"/(\w+/\w+)/resolve/[^/]+/(.+)", "resolve"))


class Hub:
    """Repositories in memory.

    Attributes:
      address: of the server.
      repositories: name -> dict(private=, commits=[dict of all files by path, ...]).
      asked: method and path of every request.
      fault: name of a handler that fails, or None; see `_HANDLERS`.
    """

    def __init__(self):
        self.repositories, self.asked, self.fault, self._blobs = {}, [], None, {}
        self.address = ""

    def files(self, repo: str) -> dict[str, bytes]:
        commits = self.repositories[repo]["commits"]
        return commits[-1] if commits else {}

    def answer(self, method, path, headers, body):
        """Status, headers and content."""
        self.asked.append(f"{method} {path}")
        for methods, pattern, name in _HANDLERS:
            found = re.fullmatch(pattern, path.partition("?")[0])
            if method in methods.split("|") and found:
                if name == self.fault:
                    return 400, {}, b'{"error": "the line broke"}'
                signed = headers.get("authorization") == f"Bearer {TOKEN}"
                if name not in ("store", "resolve") and not signed:
                    return 401, {}, b'{"error": "Invalid credentials"}'
                return getattr(self, f"_{name}")(*found.groups(), body)
        return 500, {}, f"the stand-in knows no {method} {path}".encode()

    def _whoami(self, body):
        return _json(dict(name="alice", type="user", orgs=[]))

    def _create(self, body):
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "alice":
            return _json(dict(error="You don't have the rights"), 403)
        status = 409 if repo in self.repositories else 200
        self.repositories.setdefault(repo, dict(
            private=asked.get("visibility") == "private", commits=[]))
        return _json(dict(url=f"{self.address}/{repo}"), status)

    def _validate(self, body):
        assert json.loads(body)["content"].startswith("---\n")
        return _json(dict(errors=[], warnings=[]))

    def _info(self, repo, body):
        if repo not in self.repositories:
            return _absent("RepoNotFound")
        return _json(dict(id=repo, sha=self._sha(repo), private=self.repositories[repo]["private"],
                          siblings=[dict(rfilename=f) for f in self.files(repo)]))

    def _preupload(self, repo, body):
        return _json(dict(files=[dict(
            path=f["path"], shouldIgnore=False, uploadMode="lfs" if f["path"].endswith(
                (".safetensors", ".png")) else "regular") for f in json.loads(body)["files"]]))

    def _batch(self, repo, body):
        return _json(dict(transfer="basic", objects=[
            dict(o, actions=dict(upload=dict(href=f"{self.address}/lfs/{o['oid']}")))
            for o in json.loads(body)["objects"]]))

    def _store(self, digest, body):
        assert hashlib.sha256(body).hexdigest() == digest
        self._blobs[digest] = body
        return 200, {}, b""

    def _commit(self, repo, body):
        import base64

        files = dict(self.files(repo))
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "lfsFile":
                files[value["path"]] = self._blobs[value["oid"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.repositories[repo]["commits"].append(files)
        return _json(dict(commitUrl=f"{self.address}/{repo}/commit/{self._sha(repo)}",
                          commitOid=self._sha(repo)))

    def _resolve(self, repo, file, body):
        if repo not in self.repositories:
            return _absent("RepoNotFound")
        if file not in self.files(repo):
            return _absent("EntryNotFound")
        content = self.files(repo)[file]
        return 200, {"X-Repo-Commit": self._sha(repo), "Accept-Ranges": "bytes",
                     "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content

    def _sha(self, repo):
        return f"{len(self.repositories[repo]['commits']):040x}"


def _json(content, status=200):
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _absent(code):
    return 404, {"X-Error-Code": code, "X-Error-Message": "not found"}, b"{}"


@contextlib.contextmanager
def serve():
    """A hub that answers while the block runs."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self):
            if self.headers.get("transfer-encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, content = hub.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _do

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://localhost:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
