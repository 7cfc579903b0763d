"""The guard of all tests: what leaves the machine is refused and written down, in this process and in those that it starts."""

import socket
import subprocess
import sys

import pytest
from conftest import ATTEMPTS

ELSEWHERE = "192.0.2.1"  # of RFC 5737, for documentation


def attempts() -> list[str]:
    """What was written down, and forgotten, so that this test does not fail for it."""
    found = ATTEMPTS.read_text(encoding="utf-8").splitlines()
    ATTEMPTS.write_text("")
    return found


def dial(host: str, port: int) -> None:
    with socket.socket() as sock:
        sock.settimeout(5)
        sock.connect((host, port))


@pytest.mark.loopback
@pytest.mark.parametrize("event", ["connect", "sendto", "getaddrinfo"])
def test_what_leaves_the_machine_is_refused_even_with_the_mark(event):
    with pytest.raises(OSError, match="tests reach no network"), socket.socket(type=socket.SOCK_DGRAM) as sock:
        if event == "getaddrinfo":
            socket.getaddrinfo("example.org", 80)
        elif event == "sendto":
            sock.sendto(b"x", (ELSEWHERE, 9))
        else:
            sock.connect((ELSEWHERE, 9))
    (line,) = attempts()
    assert line.startswith(f"socket.{event} {'example.org' if event == 'getaddrinfo' else ELSEWHERE}, from ")
    assert "test_connections.py" in line


def test_this_machine_is_refused_without_the_mark():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(OSError, match="tests reach no network"):
        dial(*server.getsockname())
    assert len(attempts()) == 1


@pytest.mark.loopback
def test_this_machine_is_reached_with_the_mark():
    with socket.create_server(("localhost", 0)) as server:
        dial("localhost", server.getsockname()[1])
    assert attempts() == []


def test_a_process_that_swallows_its_refusal_is_written_down_too():
    code = f"import urllib.request\ntry: urllib.request.urlopen('http://{ELSEWHERE}/')\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(attempts()) == 1
