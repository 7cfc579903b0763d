"""No test reaches the network: what is tried is refused where Python asks for it, and written down.

An audit hook sees the connections, messages and look-ups of names of a process, whatever library asks. The test's process
has it from conftest.py, the processes that it starts from `sitecustomize.py` beside this file, which is put on their
PYTHONPATH. Refused is what leaves the machine, and without the mark `loopback` (or `browser`, `slow`) a connection on it too. The
refusal is an OSError like a missing network's, which a program may well swallow: what counts is the line in the file.

Not seen: what native code asks for (Chromium, gloo); a browser's requests are its own tests' business.
"""

import errno
import os
import sys

LOG = "QWENVL_TESTS_CONNECTIONS"
"""Names the file that gets a line for every attempt that was refused."""
LOOPBACK = ".loopback"
"""Ending of the file beside that one which is there while a test runs that may reach this machine. No variable: a test may
have made its processes' environment before."""
ADDRESSED = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOKED_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
LOCAL_NAMES = ("localhost", os.uname().nodename)


def install() -> None:
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple) -> None:
    if event in ADDRESSED:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a path: no network
    elif event in LOOKED_UP:
        host = arguments[0]
    else:
        return
    host = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if not isinstance(host, str) or not host or (is_local(host) and (event in LOOKED_UP or may_reach_this_machine())):
        return
    _note(f"{event} {host}")
    raise OSError(errno.ENETUNREACH, f"tests reach no network, and {host} was asked for ({event})")


def may_reach_this_machine() -> bool:
    path = os.environ.get(LOG)
    return bool(path) and os.path.exists(path + LOOPBACK)


def is_local(host: str) -> bool:
    import ipaddress  # here and below, because every process of every test begins with this file

    try:
        address = ipaddress.ip_address(host.partition("%")[0])
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host in LOCAL_NAMES


def _note(what: str) -> None:
    import traceback

    path = os.environ.get(LOG)
    callers = [f"{os.path.basename(f.filename)}:{f.lineno}" for f in traceback.extract_stack()[:-2][-6:]]
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{what}, from {' > '.join(callers)}\n")
