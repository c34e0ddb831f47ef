"""Spans by OpenTelemetry's SDK, sent by OTLP over HTTP. Made by hand: its ASGI middleware costs each request 84 us."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from router.metrics import VERSION
from router.tracing import Attribute, Parent, Span

CLOSE_S: Final = 3.0


class _Span:
    """One request's, or a piece of its work's."""

    __slots__ = ("_method", "_span", "_tracer")

    def __init__(self, tracer: trace.Tracer, span: trace.Span, method: str = "") -> None:
        self._tracer = tracer
        self._span = span
        self._method = method

    @property
    def place(self) -> SpanContext:
        return self._span.get_span_context()

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self.place.trace_id)

    @contextmanager
    def child(self, name: str, attributes: Mapping[str, Attribute], linked: Iterable[Span] = ()) -> Iterator[None]:
        links = [Link(other.place) for other in linked if isinstance(other, _Span)]
        context = trace.set_span_in_context(self._span)
        made = self._tracer.start_span(name, context, SpanKind.CLIENT, attributes, links)
        try:
            yield
        except BaseException as error:
            # The class alone: a message may hold what a database said of somebody's values.
            made.set_attribute("error.type", type(error).__name__)
            made.set_status(Status(StatusCode.ERROR))
            raise
        finally:
            made.end()

    def end(self, route: str, status: int) -> None:
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class Otel:
    """Where spans go is said by OTEL_EXPORTER_OTLP_ENDPOINT and its like, as for every other program."""

    def __init__(self) -> None:
        own = Resource({SERVICE_NAME: "voltroute", SERVICE_VERSION: VERSION})
        given = OTELResourceDetector().detect()  # of the environment: it is about this very router
        self._provider = TracerProvider(ALWAYS_ON, Resource.create().merge(own).merge(given))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("voltroute", VERSION)

    def start(self, method: str, parent: Parent | None) -> _Span:
        """A request's span."""
        above: trace.Span = trace.INVALID_SPAN
        if parent is not None:
            flags = TraceFlags(TraceFlags.SAMPLED)
            remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
            above = NonRecordingSpan(remote)
        context = trace.set_span_in_context(above)
        made = self._tracer.start_span(method, context, SpanKind.SERVER, {"http.request.method": method})
        return _Span(self._tracer, made, method)

    def close(self) -> None:
        """A collector that does not answer is left after CLOSE_S."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
