"""Servers for programs of this machine: what they share of who is answered, of limits, and of nonsense.

    class Handler(LocalHandler):
        def do_GET(self): ...

    with LocalServer(Handler) as server: ...    # on 127.0.0.1, `server.origin`

Listens on 127.0.0.1 only. A request must name this server as its Host (a name that an attacker's domain server points
here is another one) and, if it comes from a page, as its Origin. What is malformed, too long or too slow gets a status
of 4xx, and no request spoils the next. Who may ask for what is the handler's own: a secret in the path, a cookie.
"""

import contextlib
import io
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY_BYTES = 1_000_000
REQUEST_SECONDS = 30.0
"""For all of a request to arrive, from the answer before it on, and for an answer to be taken."""
MAX_CONNECTIONS = 128
"""At once; each has a thread. More are answered 503."""
METHODS_STATUS = {501: 405, 505: 400}
"""The base class's answers to unknown methods and versions; both are the asker's fault."""


class LocalServer(ThreadingHTTPServer):
    """A thread for each connection; ends with the block, or by `close`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        handler: "type[LocalHandler] | Callable[..., LocalHandler]",
        port: int = 0,
        *,
        listener: socket.socket | None = None,
    ):
        """`listener`: in place of one of its own."""
        super().__init__(("127.0.0.1", port), handler, bind_and_activate=listener is None)
        if listener is not None:
            self.socket.close()
            self.socket = listener
            self.server_port = listener.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self.hosts = {f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def start(self, name: str) -> None:
        """Serve in a thread of that name."""
        threading.Thread(target=self.serve_forever, args=(0.1,), name=name, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def process_request(self, request, client_address) -> None:
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(b"HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request, client_address) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request, client_address) -> None:
        """Those who went away or were too slow are no error of ours; the rest is told."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


class RequestReader(io.RawIOBase):
    """A connection's bytes until `deadline` (of time.monotonic); TimeoutError then, however they drip."""

    def __init__(self, connection: socket.socket):
        self.connection, self.deadline = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request came too slowly")
        self.connection.settimeout(left)
        try:
            return self.connection.recv_into(buffer)
        finally:
            self.connection.settimeout(REQUEST_SECONDS)  # for what is written


class LocalHandler(BaseHTTPRequestHandler):
    """`do_GET` and the like are called for requests of our own pages and of programs, by this server's name."""

    server: LocalServer
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS

    def setup(self) -> None:
        super().setup()
        self._reader = RequestReader(self.connection)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        self._reader.deadline = time.monotonic() + REQUEST_SECONDS
        super().handle_one_request()

    def parse_request(self) -> bool:
        """Whether the request is to be answered; else it has been."""
        if not super().parse_request():
            return False
        is_old = self.request_version == "HTTP/0.9"
        status, reason = (400, "the version is missing") if is_old else self.refusal()
        if status:
            self.refuse(status, reason)
        return not status

    def refusal(self) -> tuple[int, str]:
        """(status, reason) for what is not from here or cannot be understood; (0, "") for the rest."""
        if any(len(self.headers.get_all(name, ())) > 1 for name in ("Host", "Origin", "Content-Length")):
            return 400, "a header is given twice"
        if self.headers.get("Host") not in self.server.hosts:
            return 403, "this server has another name"
        origin = self.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.server.hosts}:
            return 403, "a page of another server asks"
        if not self.path.startswith("/") or not all(32 < ord(character) < 127 for character in self.path):
            return 400, "the path is malformed"
        return 0, ""

    def read_body(self) -> bytes | None:
        """What was sent; None, and the refusal is answered, if its length is unknown or too much, or it never comes."""
        status, reason = self._length_fault()
        if not status:
            length = int(self.headers["Content-Length"])
            try:
                body = self.rfile.read(length)
            except TimeoutError:
                status, reason = 408, "the body did not come in time"
            else:
                if len(body) == length:
                    return body
                status, reason = 400, "the body ends before its length"
        self.refuse(status, reason)
        return None

    def _length_fault(self) -> tuple[int, str]:
        length = self.headers.get("Content-Length")
        if self.headers.get("Transfer-Encoding") is not None or length is None:
            return 411, "the body's length is not said"
        if not (length.isascii() and length.isdecimal()):
            return 400, "Content-Length is no number"
        if len(length) > 12 or int(length) > MAX_BODY_BYTES:
            return 413, f"more than {MAX_BODY_BYTES} bytes"
        return 0, ""

    def refuse(self, status: int, reason: str) -> None:
        """Answer so, and end the connection: what follows on it is not known to be a request."""
        self.close_connection = True
        self.request_version = self.protocol_version  # else one without a version gets no status
        self.reply(status, reason.encode(), "text/plain; charset=utf-8", Connection="close")

    def reply(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.request_version = self.protocol_version
        super().send_error(METHODS_STATUS.get(code, code), message, explain)

    def log_message(self, *args) -> None:
        pass
