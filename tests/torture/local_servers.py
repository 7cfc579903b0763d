"""Requests that no program of ours sends, to the servers that listen on this machine: the annotator's, the recorder's
folder, the pages of the browser world, and its proxy.

A case is a few hundred requests, mutated from good ones by a seed, over raw sockets. It held if each got one answer of
2xx to 4xx with the status that its fault asks for, or none where it never came to its end; if nothing was saved, read
or reached that should not be; and if a good request right after was answered as ever.
"""

import json
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attack import Attack, Outcome, random_of
from PIL import Image

from qwenvl_agent import local_server
from qwenvl_agent.cli.annotate import AnnotationServer
from qwenvl_agent.cli.record_clicks import COOKIE, FolderServer
from qwenvl_agent.curation.annotation import Annotation, find_pictures, look_at
from qwenvl_agent.curation.sample_folder import SampleFolder
from qwenvl_agent.worlds.browser.gate import Gate
from qwenvl_agent.worlds.browser.problem import SiteProblem
from qwenvl_agent.worlds.browser.server import Asked, PageServer, Response
from qwenvl_agent.worlds.browser.tasks import TASKS

PER_CASE = 200
PATIENCE_S = 1.0
"""Of a server in these attacks, in place of half a minute."""
MARK = {"instruction": "Search", "action": {"action": "click", "x": 30, "y": 8}, "box": [20, 5, 40, 15]}
SECRET = b"a secret outside"


class Target:
    """A server under attack. `good` are requests that it answers 200; `check` says what is wrong after an attack."""

    def __init__(self, port: int, good: Sequence[bytes], check: Callable[[], str], *, ends_half: bool = True):
        """`ends_half`: whether a client may have ended its half of the connection; to a proxy it has gone then."""
        self.port, self.good, self.check, self.ends_half = port, list(good), check, ends_half

    def ask(self, text: bytes) -> bytes | None:
        return ask(self.port, text, ends_half=self.ends_half)


def request(method: str, path: str, port: int, body: bytes | None = None, **headers: str) -> bytes:
    lines = {"Host": f"127.0.0.1:{port}"} | ({} if body is None else {"Content-Length": str(len(body))}) | headers
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + (body or b"")


@contextmanager
def annotator(folder: Path) -> Iterator[Target]:
    (folder / "shots").mkdir()
    Image.new("RGB", (60, 40), "white").save(folder / "shots" / "a.png")
    with SampleFolder(folder / "out") as samples:
        annotation = Annotation(look_at(find_pictures([folder / "shots"])), samples)
        server = AnnotationServer(annotation)
        server.start("annotator")
        key, base = annotation.listed[0].key, f"/{server.token}/"
        put = json.dumps(MARK | {"key": key, "id": "first"}).encode()
        skip = json.dumps({"key": key, "is_skipped": False}).encode()

        def check() -> str:
            path = folder / "out" / "dataset.jsonl"
            on_disk = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if on_disk != samples.records:
                return "what is in memory is not what is on the disk"
            return "" if any(record["id"] == "first" for record in on_disk) else "the first sample is gone"

        good = [
            request("POST", f"{base}put", server.server_port, put),
            request("POST", f"{base}skip", server.server_port, skip),
            request("GET", base, server.server_port),
            request("GET", f"{base}state", server.server_port),
            request("GET", f"{base}pictures/{key}", server.server_port),
        ]
        try:
            yield Target(server.server_port, good, check)
        finally:
            server.close()


@contextmanager
def folder_of_pages(folder: Path) -> Iterator[Target]:
    (folder / "secret.txt").write_bytes(SECRET)
    inside = folder / "pages"
    (inside / "sub").mkdir(parents=True)
    (inside / "index.html").write_text("<p>home</p>")
    (inside / "sub" / "a.html").write_text("<p>a</p>")
    (inside / "out").symlink_to(folder / "secret.txt")
    server = FolderServer(inside)
    cookie = {"Cookie": f"{COOKIE}={server.token}"}
    good = [request(m, p, server.server_port, **cookie) for m in ("GET", "HEAD") for p in ("/", "/sub/a.html", "/sub/")]
    try:
        yield Target(server.server_port, good, lambda: "")
    finally:
        server.close()


@contextmanager
def page_server(folder: Path) -> Iterator[Target]:
    """With a real task's site, whose handlers read what pages send."""
    rng = random.Random(str(folder))
    names = sorted(name for name in TASKS if name != "hostile")
    problem: SiteProblem = TASKS[rng.choice(names)].draw(3, rng, "en", "simple")
    server = PageServer()
    with server.mount(problem) as address:
        path = "/" + address.split("/", 3)[3]
        good = [request("GET", path, server.server_port), request("GET", f"{path}?q=a&b=%20", server.server_port)]
        for page in problem.pages:
            good += [request("GET", f"{path}{page}?q=1", server.server_port)] if page else []
            good += [request("POST", f"{path}{page}", server.server_port, b"q=1&name=a")]
        try:
            yield Target(server.server_port, good, lambda: "")
        finally:
            server.close()


@contextmanager
def proxy(folder: Path) -> Iterator[Target]:
    """To a page server; a second one beside it must hear nothing."""
    answer = Response(b"<p>here</p>")
    heard: list[Asked] = []

    class Site:
        def respond(self, asked: Asked) -> Response:
            return answer

    class Other:
        def respond(self, asked: Asked) -> Response:
            heard.append(asked)
            return answer

    own, other, told = PageServer(), PageServer(), []
    gate = Gate(own.origin, told.append)
    with own.mount(Site()) as address, other.mount(Other()) as foreign:
        host = {"Host": own.origin.removeprefix("http://"), "Connection": "close"}
        good = [request("GET", address, 0, **host), request("POST", address + "a", 0, b"a=b", **host)]
        bad = foreign.encode()

        def check() -> str:
            ask(gate.server_port, b"GET " + bad + b" HTTP/1.1\r\nHost: " + host["Host"].encode() + b"\r\n\r\n")
            ask(gate.server_port, b"CONNECT " + other.origin[7:].encode() + b" HTTP/1.1\r\n\r\n")
            return "the other server was reached" if heard else "" if foreign in told else "a try was not told"

        try:
            yield Target(gate.server_port, good, check, ends_half=False)
        finally:
            gate.close()
            own.close()
            other.close()


SERVERS = {"annotator": annotator, "recorder's folder": folder_of_pages, "page server": page_server, "proxy": proxy}


def mutate(rng: random.Random, good: bytes) -> tuple[bytes, str]:
    """(a request that is wrong in one way, the name of it)."""
    head, _, body = good.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    name = rng.choice(sorted(MUTATIONS))
    return MUTATIONS[name](rng, lines, body), name


def joined(lines: list[bytes], body: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def without(lines: list[bytes], name: bytes) -> list[bytes]:
    return [line for line in lines if not line.lower().startswith(name.lower() + b":")]


def with_path(lines: list[bytes], path: bytes) -> list[bytes]:
    method, _, version = lines[0].partition(b" ")[0], b"", lines[0].rpartition(b" ")[2]
    return [b" ".join((method, path, version)), *lines[1:]]


def path_of(lines: list[bytes]) -> bytes:
    return lines[0].split(b" ")[1]


PATHS = (
    b"/",
    b"//",
    b"/..",
    b"/../../etc/passwd",
    b"/%2e%2e/%2e%2e/etc/passwd",
    b"*",
    b"//[",
    b"http://[/",
    b"/%00",
    b"/%ff",
)
PATHS += (
    b"/" + b"a" * 5000,
    b"/a/" * 500,
    b"/\xff\xfe",
    b"http://evil.example/",
    b"file:///etc/passwd",
    b"/..%2fsecret.txt",
)
PATHS += (
    b"/out",
    b"/sub/../../secret.txt",
    b"?",
    b"#",
    b"/?" + b"a=b&" * 9000,
    b"/\x01",
    b"127.0.0.1:1",
    b"//evil.example/",
)
HALF = (
    b'"\\ud800"',
    b'"\\udfff a"',
    b'{"\\ud800": 1}',
    b"1e999",
    b"NaN",
    b"[" * 5000,
    b"\xff",
    b'"' + b"a" * 50000 + b'"',
    b"null",
)
HEADERS = (b"Host: evil.example", b"Host:", b"Origin: http://evil.example", b"Origin: null", b"Content-Length: -1")
HEADERS += (
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 0x10",
    b"Content-Length: 1_0",
    b"Content-Length: \xd9\xa3",
)
HEADERS += (
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Cookie: " + b"a=" * 3000,
    b"Expect: 100-continue",
)
HEADERS += (
    b"X" * 70000 + b": a",
    b" folded",
    b"no colon",
    b": empty",
    b"Connection: upgrade",
    b"Range: bytes=0-1,5-",
    b"\x00: a",
)
MUTATIONS: dict[str, Callable[[random.Random, list[bytes], bytes], bytes]] = {
    "no Host": lambda rng, lines, body: joined(without(lines, b"host"), body),
    "another path": lambda rng, lines, body: joined(with_path(lines, rng.choice(PATHS)), body),
    "a longer path": lambda rng, lines, body: joined(with_path(lines, path_of(lines) + rng.choice(PATHS)), body),
    "one character of the path": lambda rng, lines, body: joined(with_path(lines, flipped(rng, path_of(lines))), body),
    "another method": lambda rng, lines, body: joined(
        [
            rng.choice((b"PUT", b"DELETE", b"get", b"TRACE", b"G" * 300, b"\x00", b"OPTIONS"))
            + lines[0][lines[0].find(b" ") :],
            *lines[1:],
        ],
        body,
    ),
    "another version": lambda rng, lines, body: joined(
        [
            lines[0].rpartition(b" ")[0]
            + rng.choice((b" HTTP/0.9", b" HTTP/9.9", b" HTTP/x", b"", b" FTP/1.0", b" HTTP/1.1 x")),
            *lines[1:],
        ],
        body,
    ),
    "one header more": lambda rng, lines, body: joined([*lines, rng.choice(HEADERS)], body),
    "one header other": lambda rng, lines, body: joined(
        [*without(lines, rng.choice((b"host", b"content-length", b"cookie"))), rng.choice(HEADERS)], body
    ),
    "many headers": lambda rng, lines, body: joined([*lines, *[b"A: b"] * 300], body),
    "bytes are others": lambda rng, lines, body: flipped(rng, joined(lines, body), rng.randint(1, 5)),
    "cut off": lambda rng, lines, body: joined(lines, body)[: rng.randrange(1, len(joined(lines, body)))],
    "nothing but bytes": lambda rng, lines, body: rng.randbytes(rng.randrange(1, 300)) + b"\r\n\r\n",
    "another body": lambda rng, lines, body: joined_with_length(
        lines, rng.choice((*HALF, b"", rng.randbytes(200), b"a=" * 20000))
    ),
    "one value of the body": lambda rng, lines, body: joined_with_length(lines, value_changed(rng, body)),
    "too long a body": lambda rng, lines, body: joined(
        [*without(lines, b"content-length"), b"Content-Length: 2000000"], b"a"
    ),
    "two at once": lambda rng, lines, body: (
        joined(lines, body) + rng.choice((joined(lines, body), b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 99))
    ),
}


def joined_with_length(lines: list[bytes], body: bytes) -> bytes:
    return joined([*without(lines, b"content-length"), b"Content-Length: %d" % len(body)], body)


def flipped(rng: random.Random, text: bytes, number: int = 1) -> bytes:
    changed = bytearray(text)
    for _ in range(number):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def value_changed(rng: random.Random, body: bytes) -> bytes:
    """One value of a JSON object is another; a form's is cut."""
    try:
        values = json.loads(body)
    except ValueError:
        return body[: len(body) // 2] + rng.choice(HALF)
    name = rng.choice(sorted(values))
    written = json.dumps(values | {name: "HERE"}).encode()
    return written.replace(b'"HERE"', rng.choice(HALF))


def ask(port: int, text: bytes, *, ends_half: bool = True) -> bytes | None:
    """All that comes back; None if nothing came in time, and the connection is still open."""
    with socket.create_connection(("127.0.0.1", port), timeout=8 * PATIENCE_S) as connection:
        answer = b""
        try:
            connection.sendall(text)
            if ends_half:
                connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                answer += data
        except TimeoutError:
            return None
        except OSError:  # it has closed on what it did not want
            pass
    return answer


def fault_of(answer: bytes | None, name: str) -> str:
    """What is wrong with the answer to a malformed request."""
    if answer is None:
        return "the connection is still open"
    if SECRET in answer:
        return "a file outside was read"
    if not answer:
        return (
            ""
            if name in ("cut off", "bytes are others", "one header more", "one header other", "nothing but bytes")
            else "no answer"
        )
    first = answer.split(b"\r\n")[0].split()
    if len(first) < 2 or not first[0].startswith(b"HTTP/1.") or not first[1].isdigit():
        return f"an answer without a status: {answer[:60]!r}"
    return f"status {first[1].decode()}" if int(first[1]) >= 500 else ""


def attack(seed: int, cases: Sequence[int], scratch: Path) -> Iterator[Outcome]:
    local_server.REQUEST_SECONDS = PATIENCE_S
    names = list(SERVERS)
    for case in cases:
        rng, name = random_of(seed, case), names[case % len(names)]
        folder = Path(tempfile.mkdtemp(dir=scratch))
        with SERVERS[name](folder) as target:
            yield try_server(rng, name, target)


def try_server(rng: random.Random, name: str, target: Target) -> Outcome:
    if (answer := target.ask(target.good[0])) is None or b" 200 " not in answer[:20]:
        return Outcome(name, False, f"a good request is answered {answer and answer[:80]!r}")
    fallen: list[str] = []
    for number in range(PER_CASE):
        text, how = mutate(rng, rng.choice(target.good))
        fault = fault_of(target.ask(text), how)
        if fault:
            fallen.append(f"{how}: {fault}: {text[:120]!r}")
        if number % 20 == 0 and not fault:
            again = target.ask(target.good[-1])
            if again is None or not again.startswith(b"HTTP/1.1 200"):
                fallen.append(f"after {how}, a good request is answered {again and again[:60]!r}")
    drip = dripped(target.port, target.good[0])
    wrong = target.check()
    fallen += [text for text in (drip, wrong) if text]
    return Outcome(name, not fallen, fallen[0][:400] if fallen else "", tried=PER_CASE + 2, fallen=len(fallen))


def dripped(port: int, good: bytes) -> str:
    """What is wrong if a request comes byte by byte: it must be over in time."""
    started = time.monotonic()
    stop = threading.Event()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:

        def send() -> None:
            for byte in good[:-4] + b"\r\nX: " + b"a" * 10**6:
                if stop.wait(0.05):
                    return
                try:
                    connection.send(bytes((byte,)))
                except OSError:
                    return

        thread = threading.Thread(target=send)
        thread.start()
        try:
            connection.recv(65536)
        except OSError as error:
            if isinstance(error, TimeoutError):
                return "a request that drips keeps its connection"
        finally:
            stop.set()
            thread.join()
    return "" if time.monotonic() - started < 10 * PATIENCE_S else "a request that drips is waited for"


ATTACK = Attack(
    "local_servers",
    "mutated requests to the servers that listen on this machine, over raw sockets",
    full=240,
    quick=8,
    seconds=2400,
    run=attack,
)
