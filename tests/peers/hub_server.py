"""The Hugging Face hub as far as a client sees it, for one repository of models, in memory: what huggingface_hub and hf-hub ask
for, and what a commit takes (preupload, LFS batch, commit)."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_peers_0123456789"
#: Bytes of a part of a large file.
PART = 4000


class HubServer:
    """`with HubServer() as hub:` serves it at `hub.endpoint`."""

    def __init__(self):
        self.repository, self.files, self.storage, self.parts = None, {}, {}, {}
        self.private = False
        self.commits = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            hub = self

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.hub.get(self)

            do_HEAD = do_GET

            def do_POST(self):
                self.hub.post(self, self.rfile.read(int(self.headers["content-length"])))

            def do_PUT(self):
                self.hub.put(self, self.rfile.read(int(self.headers["content-length"])))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.storage_endpoint = f"http://localhost:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()

    @property
    def commit(self):
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def answer(self, request, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        if "content_length" not in headers:
            request.send_header("content-length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def get(self, request):
        path = request.path.split("?")[0]
        if self.private and request.headers["authorization"] != f"Bearer {TOKEN}":
            return self.answer(request, 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if re.fullmatch(rf"/api/models/{self.repository}(/revision/(main|{self.commit}))?", path):
            siblings = [{"rfilename": name} for name in self.files]
            told = {"id": self.repository, "modelId": self.repository, "sha": self.commit, "siblings": siblings}
            return self.answer(request, 200, told)
        found = re.fullmatch(rf"/{self.repository}/resolve/(main|{self.commit})/(.+)", path)
        if not found or found[2] not in self.files:
            return self.answer(request, 404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        body = self.files[found[2]]
        named = dict(ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=self.commit, Accept_Ranges="bytes")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers["range"] or "")
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            named["Content_Range"] = f"bytes {first}-{last}/{len(body)}"
            return self.answer(request, 206, body[first : last + 1], **named)
        return self.answer(request, 200, body, **named)

    def post(self, request, body):
        path = request.path
        if path.startswith("/storage/"):
            told = json.loads(body)
            parts = [self.parts[told["oid"]][part["partNumber"]] for part in told["parts"]]
            self.keep(told["oid"], b"".join(parts))
            return self.answer(request, 200, {})
        if request.headers["authorization"] != f"Bearer {TOKEN}":
            return self.answer(request, 401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            if self.repository == name:
                return self.answer(request, 409, {"error": "You already created this model repo"})
            self.repository, self.private = name, told.get("visibility") == "private"
            return self.answer(request, 200, {"url": f"{self.endpoint}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(request, 200, {"warnings": [], "errors": []})
        if self.repository is None or self.repository not in path:
            return self.answer(request, 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if path == f"/api/models/{self.repository}/preupload/main":
            return self.answer(request, 200, {"files": [self.mode(file) for file in json.loads(body)["files"]]})
        if path == f"/{self.repository}.git/info/lfs/objects/batch":
            objects = [self.object(**wanted) for wanted in json.loads(body)["objects"]]
            return self.answer(request, 200, {"transfer": "multipart", "objects": objects})
        if path == f"/{self.repository}/verify":
            told = json.loads(body)
            same = len(self.storage.get(told["oid"], b"")) == told["size"]
            return self.answer(request, 200 if same else 422, {})
        if path == f"/api/models/{self.repository}/commit/main":
            header, *lines = [json.loads(line) for line in body.splitlines()]
            for line in lines:
                value = line["value"]
                content = {"file": lambda: base64.b64decode(value["content"]), "lfsFile": lambda: self.storage[value["oid"]]}
                self.files[value["path"]] = content[line["key"]]()
            self.commits.append(header["value"]["summary"])
            return self.answer(request, 200, {"commitOid": self.commit, "commitUrl": f"{self.endpoint}/{self.repository}/commit/{self.commit}"})
        return self.answer(request, 404, {"error": f"no {path}"})

    def mode(self, file):
        large = file["path"].endswith(".safetensors")
        there = self.files.get(file["path"])
        oid = None if there is None else hashlib.sha256(there).hexdigest() if large else "of git"
        return {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def object(self, oid, size):
        if oid in self.storage:
            return {"oid": oid, "size": size}
        place = f"{self.storage_endpoint}/storage/{oid}"
        if size <= PART:
            upload = {"href": place}
        else:
            parts = {f"{part + 1:05}": f"{place}/{part + 1}" for part in range(-(-size // PART))}
            upload = {"href": f"{place}/complete", "header": {"chunk_size": str(PART), **parts}}
        verify = {"href": f"{self.endpoint}/{self.repository}/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def put(self, request, body):
        assert request.headers["authorization"] is None, "the token is for the hub alone"
        _, _, oid, *part = request.path.split("/")
        if part:
            self.parts.setdefault(oid, {})[int(part[0])] = body
        else:
            self.keep(oid, body)
        self.answer(request, 200, ETag=f'"{len(body)}"')

    def keep(self, oid, body):
        assert hashlib.sha256(body).hexdigest() == oid
        self.storage[oid] = body
