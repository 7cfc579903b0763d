"""A network of its own for a browser, where this process may make one (Linux, root): nothing leads out of it.

In a namespace of the kernel's there is a loopback device of its own, on which only our proxy listens (`gate.py`), and a
device to which everything else goes and which nobody reads. So what a page sends, by whatever protocol, reaches no port
and no address of this machine; and since all of it passes the two devices, all of it is told.
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address

CLONE_NEWNET = 0x40000000
SIOCADDRT, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK, TUNSETIFF = 0x890B, 0x8914, 0x8916, 0x891C, 0x400454CA
IFF_UP, IFF_RUNNING, IFF_TUN, IFF_NO_PI, RTF_UP = 0x1, 0x40, 0x1, 0x1000, 0x1
EVERY_PACKET = 3
"""ETH_P_ALL."""
SINK, SINK_ADDRESS = "sink", "198.18.0.1"
"""Of the block for measurements (RFC 2544), which is nobody's."""
TCP, UDP = 6, 17
MULTICAST_NAMES = ("224.0.0.251", "ff02::fb")
"""Where the browser, not a page, announces names of its own for WebRTC."""
POLL_SECONDS = 0.5


class Namespace:
    """Made in the thread that opens it; `entered` puts that thread, and what it starts, inside for a while."""

    def __init__(self):
        """OSError where this process may not."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._listeners: list[Callable[[str], None]] = []
        self._ports: set[int] = set()
        home = _own_namespace()
        try:
            self._check(self._libc.unshare(CLONE_NEWNET))
            try:
                self._inside = _own_namespace()
                _bring_up("lo")
                self._sink = _open_sink()
                self._tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(EVERY_PACKET))
            finally:
                self._check(self._libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)
        self._is_closed = threading.Event()
        threading.Thread(target=self._watch, name="packets", daemon=True).start()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside for the time of the block; other threads stay where they are."""
        home = _own_namespace()
        try:
            self._check(self._libc.setns(self._inside, CLONE_NEWNET))
            try:
                yield
            finally:
                self._check(self._libc.setns(home, CLONE_NEWNET))
        finally:
            os.close(home)

    def listen(self) -> socket.socket:
        """A listener on the inner 127.0.0.1, which is answered from out here."""
        with self.entered():
            listener = socket.create_server(("127.0.0.1", 0))
        self._ports.add(listener.getsockname()[1])
        return listener

    @contextmanager
    def told(self, tell: Callable[[str], None]) -> Iterator[None]:
        """`tell` hears of each "udp ADDRESS:PORT" to which something was sent, once."""
        seen: set[str] = set()

        def once(target: str) -> None:
            if target not in seen:
                seen.add(target)
                tell(target)

        self._listeners.append(once)
        try:
            yield
        finally:
            self._listeners.remove(once)

    def close(self) -> None:
        self._is_closed.set()

    def _watch(self) -> None:
        with self._tap:
            while not self._is_closed.is_set():
                if select.select([self._tap], [], [], POLL_SECONDS)[0]:
                    packet, (device, _, direction, *_) = self._tap.recvfrom(256)
                    self._note(packet, device, direction)
        for handle in (self._inside, self._sink):
            if handle is not None:
                os.close(handle)

    def _note(self, packet: bytes, device: str, direction: int) -> None:
        # On the loopback device each packet passes twice.
        found = None if device == "lo" and direction == socket.PACKET_OUTGOING else read_packet(packet)
        if found is None:
            return
        protocol, address, port = found
        if not (protocol == "tcp" and port in self._ports and ip_address(address).is_loopback):
            for listener in list(self._listeners):
                listener(f"{protocol} {f'[{address}]' if ':' in address else address}:{port}")

    def _check(self, result: int) -> None:
        if result:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def open_namespace() -> Namespace | None:
    """None where this process or this system has none."""
    if sys.platform != "linux":
        return None
    with suppress(OSError):
        return Namespace()
    return None


def read_packet(packet: bytes) -> tuple[str, str, int] | None:
    """(tcp or udp, address, port) that a packet of IP asks for first; None for answers, and for what no page can send."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        protocol, start, to = packet[9], 4 * (packet[0] & 15), packet[16:20]
    elif version == 6 and len(packet) >= 40:
        protocol, start, to = packet[6], 40, packet[24:40]
    else:
        return None
    address, rest = str(ip_address(to)), packet[start:]
    if protocol == TCP and len(rest) >= 14 and rest[13] & 0x12 == 0x02:  # asks for a connection
        return "tcp", address, struct.unpack("!H", rest[2:4])[0]
    if protocol == UDP and len(rest) >= 4 and address not in MULTICAST_NAMES:
        return "udp", address, struct.unpack("!H", rest[2:4])[0]
    return None


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _bring_up(device: str) -> None:
    _control(SIOCSIFFLAGS, device, struct.pack("H", IFF_UP | IFF_RUNNING))


def _control(request: int, device: str, value: bytes) -> None:
    """An ioctl about a device of the namespace that the thread is in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, request, struct.pack("16s24s", device.encode(), value))


def _open_sink() -> int | None:
    """The device to which the way to everywhere leads; None without one, when such packets are lost before they are seen.

    It has an address, for WebRTC sends nothing from a machine without.
    """
    try:
        sink = os.open("/dev/net/tun", os.O_RDWR)
    except OSError:
        return None
    fcntl.ioctl(sink, TUNSETIFF, struct.pack("16sH22x", SINK.encode(), IFF_TUN | IFF_NO_PI))
    _control(SIOCSIFADDR, SINK, _address(SINK_ADDRESS))
    _control(SIOCSIFNETMASK, SINK, _address("255.255.255.255"))
    _bring_up(SINK)
    name = ctypes.create_string_buffer(SINK.encode())
    anywhere = _address("0.0.0.0")
    # struct rtentry of <linux/route.h>: padding, destination, gateway, mask, flags, padding, metric, device, the rest.
    route = struct.pack(
        "@L16s16s16sHhLPhPLLH", 0, anywhere, anywhere, anywhere, RTF_UP, 0, 0, 0, 0, ctypes.addressof(name), 0, 0, 0
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCADDRT, route)
    return sink


def _address(text: str) -> bytes:
    """struct sockaddr_in."""
    return struct.pack("H2x4s8x", socket.AF_INET, socket.inet_aton(text))
