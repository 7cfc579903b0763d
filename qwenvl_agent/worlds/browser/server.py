"""The pages of all episodes, served on loopback. A site hears everything that its pages ask for: that is its journal.

server = PageServer()
with server.mount(site) as address:    # http://127.0.0.1:PORT/TOKEN/
    ...                                # site.respond(Asked("GET", "results", {"q": "tea"})) -> Response
"""

import secrets
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from qwenvl_agent.local_server import LocalHandler, LocalServer

MAX_FIELDS = 10_000
MAX_SITE_BYTES = 32 * 2**20
"""Of all requests to one site, which its journal keeps; a page can send without end."""
POLL_SECONDS = 1.0


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
TOO_MUCH = Response(b"this page has sent too much", "text/plain", 429)


class Site(Protocol):
    def respond(self, asked: Asked) -> Response: ...


@dataclass
class Mounted:
    site: Site
    bytes_left: int = MAX_SITE_BYTES


class PageServer(LocalServer):
    """Listens on 127.0.0.1 on a port that is free; a site is reached by a secret path only."""

    def __init__(self):
        super().__init__(PageHandler)
        self._sites: dict[str, Mounted] = {}
        self.is_closed = False
        self.start("pages")

    @contextmanager
    def mount(self, site: Site) -> Iterator[str]:
        """Serve a site for the time of the block; gives its address, which ends in a slash."""
        token = secrets.token_urlsafe(8)
        self._sites[token] = Mounted(site)
        try:
            yield f"{self.origin}/{token}/"
        finally:
            del self._sites[token]

    def close(self) -> None:
        self.is_closed = True
        super().close()

    def answer(self, asked: Asked, num_bytes: int) -> Response:
        """`num_bytes`: of the request."""
        token, _, path = asked.path.lstrip("/").partition("/")
        mounted = self._sites.get(token)
        if mounted is None:
            return MISSING
        mounted.bytes_left -= num_bytes
        if mounted.bytes_left < 0:
            return TOO_MUCH
        return mounted.site.respond(Asked(asked.method, path, asked.fields))


class PageHandler(LocalHandler):
    server: PageServer

    def do_GET(self):  # noqa: N802 (the base class's name)
        self.answer(b"")

    def do_POST(self):  # noqa: N802
        body = self.read_body()
        if body is not None:
            self.answer(body)

    def answer(self, body: bytes) -> None:
        try:
            parts = urlsplit(self.path)
            fields = fields_of(parts.query) | fields_of(body.decode("utf-8", "replace"))
        except ValueError:  # a path such as //[, or more fields than any page has
            self.refuse(400, "the address or the fields are malformed")
            return
        response = self.server.answer(Asked(self.command, unquote(parts.path), fields), len(self.path) + len(body))
        if response.never:
            self.keep_waiting()
            return
        headers = {"Cache-Control": "no-store"} | ({"Content-Disposition": "attachment"} if response.is_file else {})
        self.reply(response.status, response.body, response.kind, **headers)

    def keep_waiting(self) -> None:
        """Until the browser gives up."""
        self.close_connection = True
        while not self.server.is_closed and not select.select([self.connection], [], [], POLL_SECONDS)[0]:
            pass


def fields_of(query: str) -> dict[str, str]:
    return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS))


@cache
def page_server() -> PageServer:
    """The one server of this process."""
    return PageServer()
