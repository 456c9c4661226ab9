"""A stand-in for a Supabase project, on a real socket: storage with resumable uploads, and the functions that the plugin calls.

It is as strict as the real services were found to be: errors of the storage are HTTP 400 with the true status in the body, those
of resumable uploads are true statuses in plain text, early refusals end the reading and leave the connection to hang, the
address of an upload names a host that only the service itself can reach. ``fail`` plants one fault in front of a request.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import select
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

SERVICE_KEY = "header.service.signature"
ANONYMOUS_KEY = "header.anonymous.signature"
EXPIRED_KEY = "header.expired.signature"
FORGED_KEY = "header.service.forged"
CUT_OFF_KEY = "header.servi"
CALLBACK_SECRET = "callback-secret"
PIECE = 6 * 1024 * 1024
INTERNAL_ADDRESS = "http://storage.internal:5000/upload/resumable/"

_KEY = re.compile(r"(\w|/|!|-|\.|\*|'|\(|\)| |&|\$|@|=|;|:|\+|,|\?)+", re.ASCII)
_HOLD_SECONDS = 20.0
_FUNCTION_STATUSES = {"queued", "processing", "completed", "failed", "cancelled"}


@dataclass
class Bucket:
    limit: int | None = None
    types: tuple[str, ...] = ()


@dataclass
class Stored:
    data: bytes
    content_type: str
    cache_control: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    modified: float = field(default_factory=time.time)

    @property
    def etag(self):
        return f'"{hashlib.md5(self.data).hexdigest()}"'


@dataclass
class Upload:
    bucket: str
    key: str
    length: int
    metadata: dict
    data: bytearray = field(default_factory=bytearray)
    expired: bool = False
    finished: bool = False


@dataclass
class Fault:
    """``how``: status, status_after, reset, reset_after, hang, hang_after, slow, partial, expire, page,
    unfinished, short, quote, stuck, endless."""

    method: str
    path: str
    how: str
    value: float = 0
    times: int = 1
    skip: int = 0


@dataclass
class Asked:
    method: str
    path: str
    headers: dict
    peer: tuple = ()


@dataclass
class Answer:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict = field(default_factory=dict)


class Project:
    """The state of a project. ``url`` is its address while ``serving``."""

    def __init__(self):
        self.buckets = {"workspace-temp": Bucket(), "user-library": Bucket()}
        self.objects, self.uploads = {}, {}
        self.asked, self.faults = [], []
        self.reports, self.registrations = [], []
        self.known_jobs = None
        self.keeps_finished_uploads = True
        self.etags_are_md5 = True
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.url = ""

    def fail(self, method, path, how, value=0, *, times=1, skip=0):
        self.faults.append(Fault(method, path, how, value, times, skip))

    def take_fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.path in path and fault.times:
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def count(self, method, path):
        return sum(asked.method == method and path in asked.path for asked in self.asked)

    def data(self, path):
        bucket, _, key = path.partition("/")
        return self.objects[bucket, key].data

    @contextlib.contextmanager
    def serving(self):
        server = _Server(("127.0.0.1", 0), _Handler)
        server.project, self.url = self, f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closing.set()
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    block_on_close = False
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # what is not read soon stops the client
        super().server_bind()

    def handle_error(self, request, client_address):
        """Say nothing: clients break off on purpose."""


class Reset(Exception):
    """Break the connection off at once."""


class Refusal(Exception):
    """Answer before the body was read, and read no further."""

    def __init__(self, answer):
        super().__init__(answer.status)
        self.answer = answer


def storage_error(status, error, code, message):
    body = {"statusCode": str(status), "error": error, "code": code, "message": message}
    return Answer(500 if status == 500 else 400, json.dumps(body).encode())


def plain(status, text):
    return Answer(status, text.encode(), "text/plain")


def reply(status, value):
    return Answer(status, json.dumps(value).encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def parse_request(self):
        parsed = super().parse_request()
        if parsed:
            setattr(self, f"do_{self.command}", self.respond)
        return parsed

    @property
    def project(self):
        return self.server.project

    def respond(self):
        path = unquote(urlsplit(self.path).path)
        self.left = int(self.headers.get("Content-Length") or 0)
        self.fault = self.project.take_fault(self.command, path)
        self.how = self.fault.how if self.fault else ""
        self.project.asked.append(
            Asked(self.command, path, {name.lower(): value for name, value in self.headers.items()}, self.client_address)
        )
        try:
            self.serve(path)
        except Refusal as refusal:
            self.send(refusal.answer)
            if self.left:
                self.hold()
        except Reset:
            self.reset()

    def serve(self, path):
        if self.how == "hang":
            return self.hold()
        if self.how == "page":
            self.read()
            return self.send(Answer(200, b"<html>Welcome</html>", "text/html"))
        if self.how == "status":
            self.read()
            return self.send(Answer(int(self.fault.value), b"<html>upstream</html>", "text/html"))
        if self.how == "quote":
            said = f"not allowed: {self.headers['Authorization']}"
            raise Refusal(storage_error(400, "InvalidRequest", "InvalidRequest", said))
        answer = self.route(path)
        if self.how in {"stuck", "endless"}:
            return self.begin_only(answer)
        if self.how == "reset_after":
            raise Reset
        if self.how == "hang_after":
            return self.hold()
        if self.how == "status_after":
            answer = Answer(int(self.fault.value), b"<html>upstream</html>", "text/html")
        return self.send(answer)

    def read(self, limit=None):
        """Read the body; a planted fault may cut or slow it."""
        wanted = self.left if limit is None else min(limit, self.left)
        data = bytearray()
        while len(data) < wanted:
            size = min(1 << 16, wanted - len(data))
            if self.how == "slow":
                time.sleep(size / self.fault.value)
            if self.how == "reset" and limit is None:
                size = min(size, int(self.fault.value) - len(data))
            piece = self.rfile.read(size) if size else b""
            if not piece:
                self.partial_body = bytes(data)
                raise Reset
            data += piece
        self.left -= len(data)
        return bytes(data)

    def send(self, answer):
        with contextlib.suppress(OSError):
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Type", answer.content_type)
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)
            self.wfile.flush()

    def begin_only(self, answer):
        """Announce a long body and send none of it (stuck), or announce nothing and send on and on (endless)."""
        self.close_connection = True
        self.send_response(answer.status)
        if self.how == "stuck":
            self.send_header("Content-Length", str(int(self.fault.value)))
        self.end_headers()
        self.wfile.flush()
        if self.how == "stuck":
            return self.hold()
        with contextlib.suppress(OSError):
            while not self.project.closing.is_set():
                self.wfile.write(bytes(4096))
        return None

    def hold(self):
        """Neither read nor close until the client does."""
        self.close_connection = True
        poll = select.poll()
        poll.register(self.connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        until = time.monotonic() + _HOLD_SECONDS
        while time.monotonic() < until and not self.project.closing.is_set() and not poll.poll(50):
            pass

    def reset(self):
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile = _Nowhere()
        self.connection.close()

    def route(self, path):
        routes = {
            ("POST", "/storage/v1/upload/resumable"): self.create,
            ("HEAD", "/storage/v1/upload/resumable/"): self.progress,
            ("PATCH", "/storage/v1/upload/resumable/"): self.append,
            ("GET", "/storage/v1/object/info/"): self.info,
            ("POST", "/storage/v1/object/"): self.put,
            ("GET", "/storage/v1/object/"): self.get,
            ("POST", "/functions/v1/job-callback"): self.job_callback,
            ("POST", "/functions/v1/update-worker-url"): self.update_worker_url,
        }
        for (method, prefix), handler in routes.items():
            rest = path.removeprefix(prefix)
            if method == self.command and rest != path and (prefix.endswith("/") or not rest):
                return handler(rest)
        raise Refusal(Answer(404, b'{"message":"Route not found","error":"Not Found","statusCode":"404"}'))

    # --- storage

    def authorize(self):
        header = self.headers.get("Authorization")
        if header is None:
            text = "headers must have required property 'authorization'"
            raise Refusal(storage_error(400, "Error", "InvalidRequest", text))
        key = header.removeprefix("Bearer ")
        if key == header or key.count(".") != 2:
            problem = "Invalid Compact JWS"
        elif key == EXPIRED_KEY:
            problem = '"exp" claim timestamp check failed'
        elif key == ANONYMOUS_KEY:
            problem = "new row violates row-level security policy"
        elif key != SERVICE_KEY:
            problem = "signature verification failed"
        else:
            return
        raise Refusal(storage_error(403, "Unauthorized", "AccessDenied", problem))

    def place(self, rest):
        bucket, _, key = rest.partition("/")
        return bucket, key

    def check_key(self, key):
        if not _KEY.fullmatch(key) or any(part in {"", ".", ".."} for part in key.split("/")):
            raise Refusal(storage_error(400, "InvalidKey", "InvalidKey", f"Invalid key: {key}"))

    def put(self, rest):
        self.authorize()
        name, key = self.place(rest)
        self.check_key(key)
        bucket = self.project.buckets.get(name)
        if bucket is None:
            raise Refusal(storage_error(404, "Bucket not found", "NoSuchBucket", "Bucket not found"))
        if (name, key) in self.project.objects and self.headers.get("x-upsert", "").lower() != "true":
            raise Refusal(storage_error(409, "Duplicate", "KeyAlreadyExists", "The resource already exists"))
        too_large = storage_error(413, "Payload too large", "EntityTooLarge", "The object exceeded the maximum allowed size")
        if bucket.limit is not None and self.left > bucket.limit + 2048:
            raise Refusal(too_large)
        head = self.read(min(self.left, 1024))
        typed = re.search(rb'name="file"; filename="[^"]+"\r\nContent-Type: ([^\r]+)\r\n', head)
        if typed is None or "multipart/form-data" not in self.headers["Content-Type"]:
            raise Refusal(storage_error(400, "InvalidRequest", "InvalidRequest", "no file"))
        content_type = typed[1].decode()
        if bucket.types and content_type not in bucket.types:
            raise Refusal(
                storage_error(415, "invalid_mime_type", "InvalidMimeType", f"mime type {content_type} is not supported")
            )
        body = head + self.read()
        lead = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in BytesParser().parsebytes(lead + body).get_payload()
        }
        if bucket.limit is not None and len(parts["file"]) > bucket.limit:
            return too_large
        return self.store(name, key, parts["file"], content_type, f"max-age={parts['cacheControl'].decode()}")

    def store(self, bucket, key, data, content_type, cache_control):
        with self.project.lock:
            stored = self.project.objects[bucket, key] = Stored(data, content_type, cache_control)
        return reply(200, {"Key": f"{bucket}/{key}", "Id": stored.id})

    def find(self, rest):
        self.authorize()
        stored = self.project.objects.get(self.place(rest))
        if stored is None:
            raise Refusal(storage_error(404, "not_found", "NoSuchKey", "Object not found"))
        return stored

    def info(self, rest):
        stored = self.find(rest)
        return reply(
            200,
            {
                "id": stored.id,
                "name": self.place(rest)[1],
                "size": int(self.fault.value) if self.how == "short" else len(stored.data),
                "content_type": stored.content_type,
                "cache_control": stored.cache_control,
                "etag": stored.etag if self.project.etags_are_md5 else f'"{stored.id}-2"',
                "last_modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(stored.modified)),
            },
        )

    def get(self, rest):
        stored = self.find(rest)
        return Answer(200, stored.data, stored.content_type, {"ETag": stored.etag, "Cache-Control": stored.cache_control})

    # --- resumable uploads

    def tus(self):
        self.authorize()
        if self.headers.get("Tus-Resumable") != "1.0.0":
            raise Refusal(plain(412, "Tus-Resumable Required\n"))

    def create(self, _rest):
        self.tus()
        try:
            pairs = (item.split(" ") for item in self.headers["Upload-Metadata"].split(","))
            metadata = {name: base64.b64decode(value, validate=True).decode() for name, value in pairs}
            length = int(self.headers["Upload-Length"])
            name, key = metadata["bucketName"], metadata["objectName"]
        except (KeyError, ValueError, AttributeError):
            raise Refusal(plain(400, "Upload-Length or Upload-Metadata header invalid\n")) from None
        bucket = self.project.buckets.get(name)
        if bucket is None:
            raise Refusal(plain(404, "Bucket not found"))
        if not _KEY.fullmatch(key):
            raise Refusal(plain(400, f"Invalid key: {key}"))
        if (name, key) in self.project.objects and self.headers.get("x-upsert", "").lower() != "true":
            raise Refusal(plain(409, "The resource already exists"))
        if bucket.limit is not None and length > bucket.limit:
            raise Refusal(plain(413, "Maximum size exceeded\n"))
        if bucket.types and metadata.get("contentType") not in bucket.types:
            raise Refusal(plain(415, f"mime type {metadata.get('contentType')} is not supported"))
        identity = base64.urlsafe_b64encode(f"{name}/{key}/{uuid.uuid4()}".encode()).decode().rstrip("=")
        self.project.uploads[identity] = Upload(name, key, length, metadata)
        headers = {"Location": f"{INTERNAL_ADDRESS}{identity}" if INTERNAL_ADDRESS else "", "Tus-Resumable": "1.0.0"}
        return Answer(201, headers=headers)

    def upload(self, identity):
        self.tus()
        if self.how == "expire":
            for upload in self.project.uploads.values():
                upload.expired = True
        upload = self.project.uploads.get(identity)
        if upload is None or (upload.finished and not self.project.keeps_finished_uploads):
            raise Refusal(plain(404, "The file for this url was not found\n"))
        if upload.expired:
            raise Refusal(plain(410, "The file for this url no longer exists\n"))
        return upload

    def progress(self, identity):
        upload = self.upload(identity)
        return Answer(
            200,
            headers={
                "Upload-Offset": str(len(upload.data)),
                "Upload-Length": str(upload.length),
                "Tus-Resumable": "1.0.0",
                "Cache-Control": "no-store",
            },
        )

    def append(self, identity):
        upload = self.upload(identity)
        if self.headers.get("Content-Type") != "application/offset+octet-stream":
            raise Refusal(plain(403, "Content-Type header required\n"))
        if self.headers.get("x-upsert", "").lower() != "true" and (upload.bucket, upload.key) in self.project.objects:
            raise Refusal(plain(409, "The resource already exists"))
        if self.headers.get("Upload-Offset") != str(len(upload.data)):
            raise Refusal(plain(409, "Upload-Offset conflict\n"))
        if self.left > PIECE or len(upload.data) + self.left > upload.length:
            raise Refusal(plain(413, "Maximum size exceeded\n"))
        try:
            piece = self.read()
        except Reset:
            upload.data += self.partial_body
            raise
        upload.data += piece[: int(self.fault.value)] if self.how == "partial" else piece
        headers = {"Upload-Offset": str(len(upload.data)), "Tus-Resumable": "1.0.0"}
        if len(upload.data) == upload.length:
            if self.how == "unfinished":
                raise Reset
            upload.finished = True
            cache = f"max-age={upload.metadata['cacheControl']}"
            self.store(upload.bucket, upload.key, bytes(upload.data), upload.metadata["contentType"], cache)
            headers["Tus-Complete"] = "1"
        return Answer(204, headers=headers)

    # --- functions

    def gateway(self):
        """Let only the service role through, and return the body."""
        body = self.read()
        if self.headers.get("Authorization") != f"Bearer {SERVICE_KEY}" or self.headers.get("apikey") != SERVICE_KEY:
            raise Refusal(reply(401, {"code": 401, "message": "Invalid JWT"}))
        return body

    def job_callback(self, _rest):
        raw = self.gateway()
        expected = f"sha256={hmac.new(CALLBACK_SECRET.encode(), raw, hashlib.sha256).hexdigest()}"
        if self.headers.get("X-Callback-Signature") != expected:
            return reply(401, {"error": "Invalid signature"})
        try:
            report = json.loads(raw, parse_constant=self.no_constant)
        except ValueError as error:
            return reply(500, {"error": str(error), "success": False})
        if not report.get("job_id") or not report.get("status"):
            return reply(400, {"error": "job_id and status are required", "success": False})
        if report["status"] not in _FUNCTION_STATUSES:
            return reply(500, {"error": "invalid input value for enum job_status", "success": False})
        if self.project.known_jobs is not None and report["job_id"] not in self.project.known_jobs:
            return reply(200, {"success": True, "skipped": True})
        self.project.reports.append((report, self.headers.get("Idempotency-Key")))
        return reply(200, {"success": True, "jobId": report["job_id"]})

    @staticmethod
    def no_constant(name):
        raise ValueError(f"Unexpected token {name}")

    def update_worker_url(self, _rest):
        fields = json.loads(self.gateway())
        self.project.registrations.append(fields)
        url = fields.get("worker_url")
        if not url:
            return reply(400, {"error": "worker_url is required", "success": False})
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                pass
        except (OSError, ValueError) as error:
            return reply(400, {"error": "Worker URL is not responding", "success": False, "details": str(error)})
        return reply(200, {"success": True, "worker_url": url})


class _Nowhere:
    """Swallows what the handler writes after a reset."""

    closed = True

    def write(self, data):
        return len(data)

    def flush(self):
        """Do nothing."""
