"""The pages of all episodes, served on loopback. A site hears everything that its pages ask for: that is its journal.

server = PageServer()
with server.mount(site) as address:    # http://127.0.0.1:PORT/TOKEN/
    ...                                # site.respond(Asked("GET", "results", {"q": "tea"})) -> Response
"""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

MAX_BODY_BYTES = 1_000_000
SLOW_SECONDS = 3600
"""What a page that never comes waits for; its browser is ended long before."""


@dataclass(frozen=True)
class Asked:
    """A request: GET or POST, the path below the site's address, and the fields of query or form."""

    method: str
    path: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Response:
    """`is_file`: to be kept, not shown. `never` keeps the browser waiting for ever, as a server that hangs does."""

    body: bytes = b""
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    is_file: bool = False
    never: bool = False


MISSING = Response(b"no such page", "text/plain", 404)


class Site(Protocol):
    def respond(self, asked: Asked) -> Response: ...


class PageServer:
    """Listens on 127.0.0.1 on a port that is free; a site is reached by a secret path only."""

    def __init__(self):
        self._sites: dict[str, Site] = {}
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.stopped = threading.Event()
        threading.Thread(target=self._http.serve_forever, name="pages", daemon=True).start()

    @contextmanager
    def mount(self, site: Site) -> Iterator[str]:
        """Serve a site for the time of the block; gives its address, which ends in a slash."""
        token = secrets.token_urlsafe(8)
        self._sites[token] = site
        try:
            yield f"{self.origin}/{token}/"
        finally:
            del self._sites[token]

    def close(self) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def answer(self, asked: Asked) -> Response:
        token, _, path = asked.path.lstrip("/").partition("/")
        site = self._sites.get(token)
        return MISSING if site is None else site.respond(Asked(asked.method, path, asked.fields))

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # noqa: N805 (self is the request's)
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):  # noqa: N802 (the base class's name)
                self.reply({})

            def do_POST(self):  # noqa: N802
                length = int(self.headers.get("Content-Length") or 0)
                if length > MAX_BODY_BYTES:
                    self.send_error(413)
                    return
                body = self.rfile.read(length).decode("utf-8", "replace")
                self.reply(dict(parse_qsl(body, keep_blank_values=True)))

            def reply(self, form: dict[str, str]) -> None:
                parts = urlsplit(self.path)
                fields = dict(parse_qsl(parts.query, keep_blank_values=True)) | form
                response = server.answer(Asked(self.command, unquote(parts.path), fields))
                if response.never:
                    server.stopped.wait(SLOW_SECONDS)
                    return
                self.send_response(response.status)
                headers = {"Content-Type": response.kind, "Cache-Control": "no-store"}
                if response.is_file:
                    headers["Content-Disposition"] = "attachment"
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)

            def log_message(self, *args):
                pass

        return Handler


@cache
def page_server() -> PageServer:
    """The one server of this process."""
    return PageServer()
