"""Traces: which requests have one, and the span that a piece of work belongs to. OpenTelemetry itself is an extra."""

import importlib
import random
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from shards.errors import MachineError

_TRACEPARENT: Final = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 1
Attribute: TypeAlias = str | int


@dataclass(frozen=True, slots=True)
class Parent:
    """Whose work a request is, by its W3C traceparent: hexadecimal IDs, and whether the sender keeps the trace."""

    trace_id: str
    span_id: str
    sampled: bool


class Span(Protocol):
    """A request whose trace is kept."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""

    def child(
        self, name: str, attributes: Mapping[str, Attribute], linked: Iterable["Span"] = ()
    ) -> AbstractContextManager[object]:
        """A piece of the request's work, as long as the block; `linked`: other requests that it is done for."""

    def end(self, route: str, status: int) -> None:
        """The request was answered."""


class Tracer(Protocol):
    """Makes spans and sends them to a collector, from a thread of its own."""

    def start(self, method: str, parent: Parent | None) -> Span:
        """A request begins."""

    def close(self) -> None:
        """Send what waits, for some seconds at most."""


# The span of the request that this task answers, if its trace is kept.
ACTIVE: Final[ContextVar[Span | None]] = ContextVar("span", default=None)
NOTHING: Final = nullcontext()
SYSTEM: Final = "db.system.name"
POSTGRESQL: Final = "postgresql"
SHARD: Final = "voltroute.shard"
KIND: Final = "voltroute.kind"
READINGS: Final = "voltroute.readings"


def parse_traceparent(value: bytes) -> Parent | None:
    """The header's words; None when they are not valid, as the standard asks: then it was not sent."""
    found = _TRACEPARENT.fullmatch(value)
    if found is None:
        return None
    trace_id, span_id, flags = (str(part, "ascii") for part in found.groups())
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


class Tracing:
    """Decides which requests are traced: those whose sender keeps the trace, and a share of the others."""

    def __init__(self, tracer: Tracer, ratio: float) -> None:
        self._tracer = tracer
        self._ratio = ratio

    def begin(self, method: str, parent: Parent | None) -> Span | None:
        """The span of a request, or None, which costs a random number. What its sender leaves out is left out here."""
        if parent.sampled if parent is not None else random.random() < self._ratio:
            return self._tracer.start(method, parent)
        return None

    def close(self) -> None:
        """Send what waits."""
        self._tracer.close()


def open_tracing(ratio: float | None) -> Tracing | None:
    """Tracing as the OTEL_ variables of the environment say; None when `ratio` is. MachineError without the extra."""
    if ratio is None:
        return None
    try:
        otel = importlib.import_module("router.otel")
    except ModuleNotFoundError as error:
        message = f"traces need the extra otel ({error.name} is missing): pip install 'voltroute[otel]'"
        raise MachineError(message) from None
    tracer: Tracer = otel.Otel()
    return Tracing(tracer, ratio)


def child(name: str, shard: str) -> AbstractContextManager[object]:
    """What a shard does for the request that is being answered; nothing when its trace is not kept."""
    span = ACTIVE.get()
    return NOTHING if span is None else span.child(name, {SYSTEM: POSTGRESQL, SHARD: shard})


def shared(
    name: str, spans: Iterable[Span | None], attributes: Mapping[str, Attribute]
) -> AbstractContextManager[object]:
    """What is done for many requests at once: a piece of the first whose trace is kept, linked to the others."""
    kept = [span for span in dict.fromkeys(spans) if span is not None]
    return kept[0].child(name, attributes, kept[1:]) if kept else NOTHING
