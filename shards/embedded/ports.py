"""Ports on this machine for servers that are started a moment later, and again after a restart."""

import random
import socket
from pathlib import Path
from typing import Final

from shards.errors import MachineError

_LOWEST: Final = 15_000
_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_FROM: Final = 32_768


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that are free now, all different. MachineError when there are not that many.

    Below those that the system gives to connections: any of these could be a client's before a server has it.
    """
    found: list[int] = []
    for port in random.sample(range(_LOWEST, _ephemeral_from()), _ephemeral_from() - _LOWEST):
        if len(found) == count:
            break
        if port_is_free(port):
            found.append(port)
    if len(found) < count:
        message = f"no {count} ports are free on 127.0.0.1 between {_LOWEST} and {_ephemeral_from()}"
        raise MachineError(message)
    return found


def _ephemeral_from() -> int:
    """The lowest port that the system gives to connections; where it begins too low, as if it did not."""
    try:
        lowest = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):  # another system than Linux
        return _EPHEMERAL_FROM
    return lowest if lowest >= _LOWEST + 1000 else _EPHEMERAL_FROM


def port_is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
