"""Where the playground is served: 127.0.0.1, under an address with a token, to no other name of this machine.

Pages of other sites could else have missions played and files read through the browser of whoever uses it. What the page
itself loads comes from this server alone: gradio's page names a script and fonts of other hosts, which are taken out of it,
and the browser is told to ask nobody else (Content-Security-Policy).
"""

import re
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from qwenvl_agent.playground.page import CSS_PATH, build_page, theme
from qwenvl_agent.playground.playground import Playground

if TYPE_CHECKING:
    pass

HOST = "127.0.0.1"
ELSEWHERE = re.compile(
    rb"""<(?:link|meta|script)\b[^>]*(?:\bhttps?://(?!127\.0\.0\.1|localhost)|(?:href|src)=["']/)[^>]*>(?:\s*</script>)?"""
)
"""A tag of a page's head that names another host, or what would lie outside of the token."""
NO_ICON = '<link rel="icon" href="data:,">'
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; base-uri 'self'; "
    "form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)
HEADERS = {
    b"content-security-policy": POLICY.encode(),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
REFUSED = b"the address lacks its token: use the one that the program printed"
MAX_UPLOAD = "50mb"

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware: 403 without the token or under a foreign name, and pages that load nothing from elsewhere."""

    def __init__(self, app: Callable, token: str, hosts: frozenset[str]):
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Message, receive: Callable, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif self.is_ours(scope):
            await self.app(scope, receive, OwnPages(send))
        else:
            headers = [(b"content-type", b"text/plain"), *HEADERS.items()]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})

    def is_ours(self, scope: Message) -> bool:
        token = scope["path"].removeprefix("/").partition("/")[0]
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        return secrets.compare_digest(token.encode(), self.token.encode()) and host in self.hosts


class OwnPages:
    """A response as it goes out: headers added, and pages without the tags that name other hosts."""

    def __init__(self, send: Send):
        self.send = send
        self.start: Message | None = None
        """Of a page, held back until its length is known."""
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message["headers"] if name.lower() not in HEADERS]
            message = {**message, "headers": [*kept, *HEADERS.items()]}
            if dict(message["headers"]).get(b"content-type", b"").startswith(b"text/html"):
                self.start = message
                return
        elif self.start is not None:
            self.body += message.get("body", b"")
            if message.get("more_body"):
                return
            await self.send_page()
            return
        await self.send(message)

    async def send_page(self) -> None:
        assert self.start is not None
        body = ELSEWHERE.sub(b"", self.body)
        headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
        length = (b"content-length", str(len(body)).encode())
        await self.send({**self.start, "headers": [*headers, length]})
        await self.send({"type": "http.response.body", "body": body})


class PlaygroundServer:
    """`address` holds the token; `serve` returns when `stop` is called, or at Ctrl-C."""

    def __init__(self, playground: Playground, port: int = 0):
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI

        self.socket = socket.create_server((HOST, port))
        port = self.socket.getsockname()[1]
        token = secrets.token_urlsafe(16)
        self.address = f"http://{HOST}:{port}/{token}/"
        app = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            build_page(playground),
            path=f"/{token}",
            server_name=HOST,
            server_port=port,
            theme=theme(),
            css=CSS_PATH.read_text(encoding="utf-8"),
            head=NO_ICON,
            footer_links=[],
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            max_file_size=MAX_UPLOAD,
        )
        guard = Guard(app, token, frozenset(f"{name}:{port}" for name in (HOST, "localhost")))
        self.server: uvicorn.Server = uvicorn.Server(
            uvicorn.Config(guard, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        )

    def serve(self) -> None:
        self.server.run(sockets=[self.socket])

    def stop(self) -> None:
        self.server.should_exit = True
