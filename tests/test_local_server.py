"""What all servers of this machine share: whom they answer, and that no request spoils the next."""

import socket
import threading
import time

import pytest

from qwenvl_agent import local_server
from qwenvl_agent.local_server import LocalHandler, LocalServer

pytestmark = pytest.mark.loopback


class Echo(LocalHandler):
    def do_GET(self):  # noqa: N802
        self.reply(200, b"got", "text/plain")

    def do_POST(self):  # noqa: N802
        body = self.read_body()
        if body is not None:
            self.reply(200, body, "text/plain")


@pytest.fixture
def server():
    made = LocalServer(Echo)
    made.start("echo")
    yield made
    made.close()


def ask(server, text: bytes, *, is_ended: bool = True) -> bytes:
    """What comes back on one connection; HOST stands for the server's name."""
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(text.replace(b"HOST", f"127.0.0.1:{server.server_port}".encode()))
        if is_ended:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


OURS = b"Host: HOST\r\n"


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1" and server.origin == f"http://127.0.0.1:{server.server_port}"
    assert status(ask(server, b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n")) == 200


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + OURS + b"Origin: http://evil.example\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\n" + OURS + b"Origin: null\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\n" + OURS + b"Origin: http://HOST\r\n\r\n", 200),
        (b"POST / HTTP/1.1\r\n" + OURS + b"Content-Length: 2\r\n\r\nok", 200),
        (b"POST / HTTP/1.1\r\n" + OURS + b"\r\n", 411),
        (b"POST / HTTP/1.1\r\n" + OURS + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\n" + OURS + b"Content-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + OURS + "Content-Length: ٣\r\n\r\n".encode(), 400),
        (b"POST / HTTP/1.1\r\n" + OURS + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", 400),
        (b"POST / HTTP/1.1\r\n" + OURS + b"Content-Length: 1000001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\n" + OURS + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\n" + OURS + b"Content-Length: 9\r\n\r\nshort", 400),
        (b"PUT / HTTP/1.1\r\n" + OURS + b"\r\n", 405),
        (b"GET / HTTP/9.9\r\n" + OURS + b"\r\n", 400),
        (b"GET / HTTP/x\r\n" + OURS + b"\r\n", 400),
        (b"GET http://evil.example/ HTTP/1.1\r\n" + OURS + b"\r\n", 400),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n" + OURS + b"\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + OURS + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"\x16\x03\x01\x00\xa5\r\n\r\n", 400),
    ],
    ids=lambda value: None if isinstance(value, int) else repr(value[:60]),
)
def test_who_is_answered_and_what_is_refused(server, request_, wanted):
    assert status(ask(server, request_)) == wanted
    assert status(ask(server, b"GET / HTTP/1.1\r\n" + OURS + b"\r\n")) == 200


def test_after_a_refusal_nothing_on_the_connection_is_a_request(server):
    """Else a body of unknown length would be read as one."""
    smuggled = b"POST / HTTP/1.1\r\n" + OURS + b"\r\nGET / HTTP/1.1\r\n" + OURS + b"\r\n"
    assert ask(server, smuggled).count(b"HTTP/1.1 ") == 1


def test_what_drips_is_over_in_time(server, monkeypatch):
    monkeypatch.setattr(local_server, "REQUEST_SECONDS", 0.5)

    def drip(head: bytes) -> tuple[float, int]:
        started = time.monotonic()
        with socket.create_connection(server.server_address[:2], timeout=10) as connection:
            connection.sendall(head.replace(b"HOST", f"127.0.0.1:{server.server_port}".encode()))
            stop = threading.Event()

            def go_on():
                while not stop.wait(0.05):
                    try:
                        connection.send(b"x")
                    except OSError:
                        return

            thread = threading.Thread(target=go_on)
            thread.start()
            try:
                answer = connection.recv(65536)
            except ConnectionError:
                answer = b""
            stop.set()
            thread.join()
        return time.monotonic() - started, status(answer)

    seconds, answered = drip(b"GET / HTTP/1.1\r\nX: ")
    assert seconds < 5 and answered == 0
    seconds, answered = drip(b"POST / HTTP/1.1\r\n" + OURS + b"Content-Length: 100000\r\n\r\n")
    assert seconds < 5 and answered == 408


def test_more_connections_than_places_are_answered_busy(server, monkeypatch):
    server._places = threading.BoundedSemaphore(2)
    held = [socket.create_connection(server.server_address[:2], timeout=10) for _ in range(2)]
    for connection in held:
        connection.sendall(b"GET / HTTP/1.1\r\n")
    time.sleep(0.3)
    assert status(ask(server, b"", is_ended=False)) == 503
    for connection in held:
        connection.close()
    deadline = time.monotonic() + 10
    while status(ask(server, b"GET / HTTP/1.1\r\n" + OURS + b"\r\n")) != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status(ask(server, b"GET / HTTP/1.1\r\n" + OURS + b"\r\n")) == 200
