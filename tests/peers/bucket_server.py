"""moto as a server that speaks S3's protocol, and a proxy before it that fails on purpose."""

import http.client
import http.server
import json
import os
import random
import socket
import subprocess
import threading
import time
import urllib.parse
import xml.etree.ElementTree as xml

KEY, SECRET = "AKIAHUNTER2HUNTER2", "hunter2-and-more-that-nobody-may-see"


class Moto:
    """A server with the bucket `bucket`."""

    def __init__(self, repository):
        program = subprocess.run([repository / "scripts/moto-venv"], capture_output=True, text=True, check=True).stdout.strip()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [program, "-p", str(self.port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(600):
            try:
                self.request("PUT", "/bucket")
                return
            except OSError:
                assert self.process.poll() is None, "moto_server does not start"
                time.sleep(0.1)
        raise AssertionError("moto_server does not answer")

    def close(self):
        self.process.kill()
        self.process.wait()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            # What nobody signs for, moto keeps from others; it does not look at the signature.
            signed = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
            connection.request(method, path, body, {"Authorization": signed})
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, f"{method} {path}: {answer.status} {content[:300]}"
            return content
        finally:
            connection.close()

    def put(self, name, content):
        self.request("PUT", "/bucket/" + name, content)

    def get(self, name):
        return self.request("GET", "/bucket/" + name)

    def delete(self, name):
        self.request("DELETE", "/bucket/" + name)

    def names(self, folder):
        """The objects below a folder, relative to it."""
        query = urllib.parse.urlencode({"list-type": 2, "prefix": folder + "/"})
        root = xml.fromstring(self.request("GET", f"/bucket?{query}"))
        space = root.tag[: root.tag.index("}") + 1]
        assert root.find(space + "IsTruncated").text == "false"
        return sorted(key.text.removeprefix(folder + "/") for key in root.iter(space + "Key"))

    def copy(self, local, folder):
        """Puts the files of a folder here."""
        for path in local.rglob("*"):
            if path.is_file():
                self.put(f"{folder}/{path.relative_to(local)}", path.read_bytes())

    def assert_holds(self, local, folder):
        """Whether the objects are the files of a folder, byte for byte. Only the command line that the store notes is another."""
        files = sorted(str(path.relative_to(local)) for path in local.rglob("*") if path.is_file())
        assert self.names(folder) == files
        for name in files:
            here, there = (local / name).read_bytes(), self.get(f"{folder}/{name}")
            if name == "zarr.json":
                here, there = (json.loads(text) for text in [here, there])
                for group in [here, there]:
                    del group["attributes"]["specification"]["provenance"]["command_line"]
            if name == "manifest":
                here, there = (json.loads(text[9:])["files"][:-1] for text in [here, there])
            assert here == there, name


class Proxy(http.server.ThreadingHTTPServer):
    """Passes requests on, and does to each answer what `plan(method, path, number)` says: None, "drop" (the connection), "delay",
    "throttle", "corrupt" (a byte of it), "cut" (the connection in its middle), or a status."""

    daemon_threads = True

    def __init__(self, port, plan):
        super().__init__(("127.0.0.1", 0), Handler)
        self.to, self.plan, self.requests, self.bytes = port, plan, 0, 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, address):
        pass  # programs are ended in the middle of requests


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            number = self.server.requests
            self.server.requests += 1
        fault = self.server.plan(self.command, self.path, number)
        if isinstance(fault, int):
            return self.answer(fault, [], b"<Error><Code>Told</Code><Message>as the test wants it</Message></Error>")
        if fault == "drop" and number % 2:
            return self.end()
        connection = http.client.HTTPConnection("127.0.0.1", self.server.to, timeout=60)
        connection.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() != "host"})
        answer = connection.getresponse()
        content = answer.read()
        headers = [(k, v) for k, v in answer.getheaders() if k.lower() not in ("content-length", "connection", "transfer-encoding")]
        length = answer.getheader("Content-Length")
        connection.close()
        if fault == "drop":
            # Carried out, and the answer lost.
            return self.end()
        if fault == "delay":
            time.sleep(0.2)
        if fault == "corrupt" and content:
            at = number * 7919 % len(content)
            content = content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
        self.answer(answer.status, headers, content, fault, length)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_request

    def answer(self, status, headers, content, fault=None, length=None):
        with self.server.lock:
            self.server.bytes += len(content)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            return self.end()
        step = max(1, len(content) // 5) if fault == "throttle" else len(content) or 1
        for at in range(0, len(content), step):
            self.wfile.write(content[at : at + step])
            if fault == "throttle":
                time.sleep(0.05)

    def end(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def seeded(faults, share, seed, methods=("GET", "PUT", "HEAD", "DELETE")):
    """A plan that lets a share of the requests meet one of the faults."""
    chance = random.Random(seed)
    lock = threading.Lock()

    def plan(method, _path, _number):
        with lock:
            return chance.choice(faults) if method in methods and chance.random() < share else None

    return plan


def environment(endpoint, **more):
    """Without what this machine may know of other buckets."""
    families = ("AWS_", "GOOGLE_", "AZURE_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(families) and not k.lower().endswith("_proxy")}
    own = dict(AWS_ACCESS_KEY_ID=KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1", AWS_ENDPOINT_URL=endpoint)
    return {k: v for k, v in (kept | own | more).items() if v is not None}
