"""The four kinds of connection of the data plane, and what stands on them: nothing, or a proxy that fails on command.

gateway ──► router ──► drafter
             ▲            ▲
           target ────────┘
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

from tests.chaos.proxy import Fault, TcpProxy

if TYPE_CHECKING:
    from tests.chaos.supervisor import Member


class Link(Enum):
    GATEWAY_ROUTER = "gateway to router"
    TARGET_ROUTER = "target to router"
    ROUTER_DRAFTER = "router to drafter"
    TARGET_DRAFTER = "target to drafter"


_LINKS_OF = {
    "router": (Link.GATEWAY_ROUTER, Link.TARGET_ROUTER),
    "drafter": (Link.ROUTER_DRAFTER, Link.TARGET_DRAFTER),
}


class Links(Protocol):
    async def add(self, member: Member) -> None: ...

    def remove(self, member: Member) -> None: ...

    def address(self, link: Link, member: Member) -> str:
        """Where a process at the other end of such a link reaches the member."""
        ...

    async def close(self) -> None: ...


class DirectLinks:
    async def add(self, member: Member) -> None: ...

    def remove(self, member: Member) -> None: ...

    def address(self, link: Link, member: Member) -> str:
        return member.address

    async def close(self) -> None: ...


class ProxiedLinks:
    """A proxy of its own for every link and every process that is dialled."""

    def __init__(self) -> None:
        self._proxies: dict[tuple[Link, str], TcpProxy] = {}

    async def add(self, member: Member) -> None:
        for link in _LINKS_OF.get(member.role, ()):
            proxy = TcpProxy(member.address)
            await proxy.start()
            self._proxies[link, member.name] = proxy

    def remove(self, member: Member) -> None:
        for link in _LINKS_OF.get(member.role, ()):
            proxy = self._proxies.pop((link, member.name), None)
            if proxy is not None:
                proxy.abort()

    def address(self, link: Link, member: Member) -> str:
        proxy = self._proxies.get((link, member.name))
        return member.address if proxy is None else proxy.address

    def proxies(self, link: Link) -> list[TcpProxy]:
        return [proxy for (kind, _), proxy in self._proxies.items() if kind is link]

    def set_fault(self, link: Link, fault: Fault) -> None:
        for proxy in self.proxies(link):
            proxy.set_fault(fault)

    async def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.abort()
        self._proxies.clear()
