"""Structured logs on standard error: JSON, or for people on a terminal."""

import logging
import sys
from contextvars import ContextVar
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

from shards.postgres.dsn import redact_text

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if request_id := REQUEST_ID.get():
        event["request_id"] = request_id
    return event


def _redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """No password of a DSN leaves the process, wherever the text came from."""
    for key, value in event.items():
        if isinstance(value, str) and "://" in value:
            event[key] = redact_text(value)
    return event


def configure(level_name: str, *, console: bool | None = None) -> None:
    """Set up structlog, and send what uvicorn, asyncpg and others say through it. `console` None: on a terminal."""
    if console is None:
        console = sys.stderr.isatty()
    shared: list[Any] = [
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=True)]
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _redact, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name, quiet in (("uvicorn.access", logging.CRITICAL), ("uvicorn.error", logging.WARNING)):
        logging.getLogger(name).setLevel(max(level, quiet))
    logging.getLogger("asyncpg.pool").setLevel(logging.CRITICAL)  # the pools' own state says it, without a traceback
