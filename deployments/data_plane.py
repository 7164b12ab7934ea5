"""Where a replica's own gRPC server listens: the node's address, a port of `data_plane_ports`."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc.aio
import ray.util

from cluster.transports.authentication import DataPlaneSecurity
from cluster.transports.grpc_options import RunningServer, start_server


@dataclass(frozen=True, slots=True)
class DataPlane:
    """How replicas reach each other; all of an application have the same."""

    host: str | None  # None: each listens on its node's address, and on no other
    ports: str  # "FIRST-LAST"
    security: DataPlaneSecurity

    async def serve(self, register: Callable[[grpc.aio.Server], None]) -> RunningServer:
        """Opens a replica's own server. Raises `Unavailable` where no port is free."""
        host = self.host or node_address()
        return await start_server(register, host, candidate_ports(self.ports, host), self.security)


def node_address() -> str:
    """The address by which other nodes reach this one."""
    address: str = ray.util.get_node_ip_address()
    return address


def candidate_ports(first_last: str, address: str) -> Iterator[int]:
    """The ports of "FIRST-LAST" that are free at the moment. Replicas that start together begin at different places."""
    first, last = (int(port) for port in first_last.split("-"))
    num_ports = last - first + 1
    for offset in range(num_ports):
        port = first + (os.getpid() + offset) % num_ports
        # Asked first because gRPC writes lines of its own about every port that it cannot bind.
        if _is_free(address, port):
            yield port


def _is_free(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
