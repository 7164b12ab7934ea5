"""Two network namespaces joined by a wire on which every packet takes its time.

Linux has a queueing discipline for delays (netem), which many kernels lack. Here each namespace has a TUN device, and a
process between them holds every packet back: for TCP and all above it, a link to another site.

with joined_namespaces(delay_s=0.005) as (here, there):
    subprocess.run([*here.enter, "ping", there.address])

Needs root, /dev/net/tun and `ip`.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import multiprocessing
import os
import select
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 1500


@dataclass(frozen=True)
class Namespace:
    """One end of the wire."""

    name: str
    device: str
    address: str

    @property
    def enter(self) -> list[str]:
        """What a command is preceded by, to run inside."""
        return ["ip", "netns", "exec", self.name]


@contextlib.contextmanager
def joined_namespaces(delay_s: float) -> Iterator[tuple[Namespace, Namespace]]:
    """`delay_s`: in each direction. Both namespaces are gone afterwards, with whatever still runs in them cut off."""
    ends = [Namespace(f"dflash-{os.getpid()}-{end}", f"dft{os.getpid()}{end}", f"10.77.0.{end}") for end in (1, 2)]
    with contextlib.ExitStack() as undo:
        devices = []
        for mine, other in (ends, reversed(ends)):
            _ip("netns", "add", mine.name)
            undo.callback(_ip, "netns", "del", mine.name)
            devices.append(_open_device(mine.device))
            undo.callback(os.close, devices[-1])
            _ip("link", "set", mine.device, "netns", mine.name)
            inside = ("-n", mine.name)
            _ip(*inside, "addr", "add", mine.address, "peer", other.address, "dev", mine.device)
            _ip(*inside, "link", "set", mine.device, "up")
            _ip(*inside, "link", "set", "lo", "up")
        wire = multiprocessing.get_context("fork").Process(target=_carry, args=(devices, delay_s), daemon=True)
        wire.start()
        undo.callback(wire.join)
        undo.callback(wire.kill)
        yield ends[0], ends[1]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _open_device(name: str) -> int:
    """A packet written to it comes out of the device, and one sent by the device is read from it."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _carry(devices: list[int], delay_s: float) -> None:
    others = dict(zip(devices, reversed(devices), strict=True))
    numbers = itertools.count()
    on_the_way: list[tuple[float, int, int, bytes]] = []  # when it arrives, in which order, where, what
    while True:
        wait_s = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        readable, _, _ = select.select(devices, [], [], wait_s)
        for device in readable:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(device, _MTU)
                    heapq.heappush(on_the_way, (time.monotonic() + delay_s, next(numbers), others[device], packet))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(on_the_way)
            os.write(device, packet)
