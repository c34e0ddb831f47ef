"""Heads of requests that were parsed before: a device sends the same line and headers every minute, another body."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

RawHeader: TypeAlias = tuple[bytes, bytes]

_END: Final = b"\r\n\r\n"
_REMEMBERED_MAX: Final = 4_096
_REMEMBERED_BYTES_MAX: Final = 1_024
_OF_ONE_REQUEST: Final = b"x-request-id"


@dataclass(frozen=True, slots=True)
class Head:
    """A POST of readings whose headers change nothing. `named`: those `given`, by name; `length`: bytes of its body."""

    path: str
    given: Sequence[RawHeader]
    named: Mapping[bytes, bytes]
    length: int


class Heads:
    """What heads mean, by their bytes: at the beginning of a request the same bytes always mean the same."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Head and body of a request that is all of `data`, if its head is remembered."""
        end = data.find(_END) + len(_END)
        head = self._known.get(data[:end])
        if head is None or len(data) - end != head.length:
            return None
        return head, data[end:]

    def remember(self, data: bytes, head: Head) -> None:
        """`data` was parsed from its first byte, and is one request with this head."""
        end = data.find(_END) + len(_END)
        if len(data) - end != head.length or end > _REMEMBERED_BYTES_MAX or _OF_ONE_REQUEST in head.named:
            return
        if len(self._known) >= _REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        self._known[data[:end]] = head
