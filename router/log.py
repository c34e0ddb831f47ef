"""Structured logs on standard error: JSON, or for people on a terminal."""

import atexit
import contextlib
import logging
import os
import queue
import re
import sys
import threading
import time
from contextvars import ContextVar
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

from router.metrics import LOG_LINES_LEFT_OUT
from shards.postgres.dsn import redact_text

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
TRACE_ID: Final[ContextVar[str]] = ContextVar("trace_id", default="")
_KEY: Final = re.compile(r"(vr_[a-z0-9]{8}_)[A-Za-z0-9_-]{43}")
LINES_WAITING_MAX: Final = 10_000
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _add_ids(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if request_id := REQUEST_ID.get():
        event["request_id"] = request_id
    if trace_id := TRACE_ID.get():
        event["trace_id"] = trace_id
    return event


def _redacted(_logger: WrappedLogger, _method: str, line: Any) -> str:
    """No password and no key in a whole line, tracebacks included."""
    return _KEY.sub(r"\1***", redact_text(str(line)))


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """No password of a DSN leaves the process, wherever the text came from."""
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = redact_text(value)
    return event


class _Writer(logging.Handler):
    """Writes lines from a thread of its own: whoever does not read them stops nothing; what is too much is left out."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: queue.Queue[str] = queue.Queue(LINES_WAITING_MAX)
        threading.Thread(target=self._write, name="log", daemon=True).start()
        atexit.register(self._drain)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; count it when there is no room."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            LOG_LINES_LEFT_OUT.inc()
        except Exception:  # noqa: BLE001 - a value that cannot be shown must not end a request
            LOG_LINES_LEFT_OUT.inc()

    def _write(self) -> None:
        while True:
            rest = (self._lines.get() + "\n").encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                while rest:  # past sys.stderr, whose lock would be held by a write that never ends when we exit
                    rest = rest[os.write(sys.stderr.fileno(), rest) :]
            self._lines.task_done()

    def _drain(self) -> None:
        """At the end: what is waiting, for a second at most."""
        until = time.monotonic() + 1
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)


def configure(level_name: str, *, console: bool | None = None) -> None:
    """Set up structlog, and send what uvicorn, asyncpg and others say through it. `console` None: on a terminal."""
    if console is None:
        console = sys.stderr.isatty()
    shared: list[Any] = [
        _add_ids,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=True, exception_formatter=structlog.dev.plain_traceback)]
        if console
        else [structlog.processors.format_exc_info, _redact, structlog.processors.JSONRenderer()]
    )
    level = _LEVELS[level_name]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = _Writer()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact, *last, _redacted],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name, quiet in (("uvicorn.access", logging.CRITICAL), ("uvicorn.error", logging.WARNING)):
        logging.getLogger(name).setLevel(max(level, quiet))
    logging.getLogger("asyncpg.pool").setLevel(logging.CRITICAL)  # the pools' own state says it, without a traceback
