"""The only way out of a browser's pages: a proxy that passes what goes to one server of this machine and refuses the rest.

Chromium is told to send everything through it, loopback addresses and WebSockets included, whatever in a page asks:
documents, workers of every kind, prefetching, beacons, downloads. It resolves no names itself.
"""

import http.client
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

from qwenvl_agent.local_server import LocalHandler, LocalServer

CHUNK_BYTES = 65536
HOP_HEADERS = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"}
HOP_HEADERS |= {"trailer", "transfer-encoding", "upgrade", "content-length"}
"""Of one connection, not of the message."""


class Gate(LocalServer):
    """Passes to `origin` (http://HOST:PORT; "": to nothing). `tell` hears of all else, from a thread of the gate's own."""

    def __init__(self, origin: str, tell: Callable[[str], None], listener: socket.socket | None = None):
        """`listener`: in place of one on 127.0.0.1."""
        super().__init__(GateHandler, listener=listener)
        self.scheme, self.allowed = target_of(origin)
        self.tell = tell
        self.start("gate")

    def own_place(self) -> tuple[str, int]:
        assert self.allowed, "asked for after a refusal"
        return self.allowed


class GateHandler(LocalHandler):
    server: Gate

    def refusal(self) -> tuple[int, str]:
        """Who may be asked for; that the rest is as it should be is the server's own business."""
        is_tunnel = self.command == "CONNECT"
        target = target_of(f"//{self.path}" if is_tunnel else self.path)[1]
        is_own = target is not None and target == self.server.allowed
        if is_own and (is_tunnel or self.server.scheme == "http"):
            return 0, ""
        self.server.tell(self.path)
        return 403, "this page may reach its own server only"

    def pass_on(self) -> None:
        length = self.headers.get("Content-Length")
        body = None if length is None else self.read_body()
        if length is not None and body is None:
            return  # it has been refused
        parts = urlsplit(self.path)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
        host, port = self.server.own_place()
        upstream = http.client.HTTPConnection(host, port)
        try:
            upstream.request(self.command, path, body, headers)
            if self._is_answered(upstream.sock):
                self._return(upstream.getresponse())
        except (ValueError, http.client.InvalidURL):  # what no address or header may hold
            self.refuse(400, "the request is malformed")
        except (OSError, http.client.HTTPException):
            self.refuse(502, "the page's server does not answer")
        finally:
            upstream.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = pass_on  # noqa: N815

    def do_CONNECT(self) -> None:  # noqa: N802 (the base class's name)
        """A WebSocket to the page's own server."""
        self.close_connection = True
        try:
            upstream = socket.create_connection(self.server.own_place())
        except OSError:
            self.refuse(502, "the page's server does not answer")
            return
        with upstream:
            self.send_response_only(200)
            self.end_headers()
            for source, target in ends_of(self.connection, upstream):
                data = source.recv(CHUNK_BYTES)
                if not data:
                    return
                target.sendall(data)

    def _is_answered(self, upstream: socket.socket) -> bool:
        """Wait for the server; False, and nothing more is sent, if the browser gives up before."""
        for source, _ in ends_of(self.connection, upstream):
            self.close_connection |= source is self.connection  # it has gone, or sends what nobody has asked for
            return source is upstream
        return False

    def _return(self, response: http.client.HTTPResponse) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP_HEADERS:
                self.send_header(name, value)
        is_bare = self.command == "HEAD" or response.status in (204, 304)
        if response.length is None and not is_bare:
            self.send_header("Connection", "close")
            self.close_connection = True
        elif not is_bare or response.getheader("Content-Length"):
            self.send_header("Content-Length", response.getheader("Content-Length") or str(response.length or 0))
        self.end_headers()
        while not is_bare and (data := response.read1(CHUNK_BYTES)):
            self.wfile.write(data)


def ends_of(one: socket.socket, other: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(the end that has something to read or has gone, the other end), as they come."""
    while True:
        for source in select.select([one, other], [], [])[0]:
            yield source, other if source is one else one


def target_of(address: str) -> tuple[str, tuple[str, int] | None]:
    """(scheme, (host, port)) of an address; no place for what names none."""
    with suppress(ValueError):
        parts = urlsplit(address)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        if parts.hostname and port:
            return parts.scheme, (parts.hostname, port)
    return "", None
