"""Running a router: uvicorn with uvloop and httptools, signals, and a drain that balancers can see."""

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import structlog
import uvicorn

from router.app import create_app
from router.http.direct import direct_protocol_for
from router.http.protocol import ConnectionLimits, Connections, protocol_for
from router.settings import Settings
from router.siblings import Siblings
from shards.cluster.live import Cluster
from shards.errors import MachineError

_log = structlog.stdlib.get_logger(__name__)
BACKLOG = 2048
Say: TypeAlias = Callable[[str, bool], Awaitable[None]]
_COLLECT_AFTER = 10_000  # new container objects; the interpreter's own 700 are made by some twenty requests


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; `shared` with others of this user. MachineError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {host}:{port}: {error.strerror}"
        raise MachineError(message) from error
    return listener


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    """http(s)://host:port of a listening socket."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"https://{shown}" if tls else f"http://{shown}"


def stop_on_signals() -> asyncio.Event:
    """An event that SIGINT, SIGTERM and SIGHUP set: a terminal that is closed stops nothing halfway."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def serve(
    settings: Settings, listener: socket.socket, stopping: asyncio.Event, say: Say, siblings: Siblings | None = None
) -> None:
    """Serve until `stopping` is set, then drain. `say` gets the URL, and whether there is a map yet.

    `siblings`: the other workers on the port, when a supervisor started this one.
    """
    connections = Connections(
        ConnectionLimits(
            settings.connections_max,
            settings.header_bytes_max,
            settings.header_timeout_s,
            settings.write_timeout_s,
            settings.idle_timeout_s,
        )
    )
    app = create_app(settings, connections, siblings)
    direct = settings.direct_path and app.tracing is None  # a request that may be traced has a task of its own
    _allow_descriptors(settings.connections_max + 1_000)
    config = uvicorn.Config(
        app,
        http=direct_protocol_for(connections, app.way) if direct else protocol_for(connections),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(max(settings.idle_timeout_s, 1)),
        timeout_graceful_shutdown=int(settings.drain_timeout_s),
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await _first(serving, asyncio.create_task(server.up.wait()))
    if serving.done():
        serving.result()
        message = "the router did not start; its log says why"
        raise MachineError(message)
    _settle_garbage_collector()
    telling = asyncio.create_task(
        _tell(app.state.router.cluster, url_of(listener, tls=settings.tls_certificate is not None), say)
    )
    await _first(serving, asyncio.create_task(stopping.wait()))
    telling.cancel()
    if not serving.done():
        app.state.router.stopping = connections.draining = True
        await asyncio.sleep(settings.drain_delay_s)
        server.should_exit = True
    await serving


async def _tell(cluster: Cluster, url: str, say: Say) -> None:
    """Say that the router listens, and, when there was none yet, that a map has come: only then it is of use."""
    if not cluster.has_map:
        await say(url, False)
        await cluster.first_map()
    await say(url, True)


def _allow_descriptors(wanted: int) -> None:
    """A connection takes a file descriptor: raise this process' own limit towards what the settings allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    if enough < wanted:
        _log.warning("few_file_descriptors", limit=enough, wanted=wanted)


def _settle_garbage_collector() -> None:
    """Leave what was made at start-up out of every later collection: it is all there to stay.

    Without this, full collections of some 200,000 objects stall all requests for 20-40 ms, several times a second under
    load (p99 of single readings: 45 ms, and 18 ms with it).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


async def _first(serving: asyncio.Task[None], event: asyncio.Task[bool]) -> None:
    """Wait for the event, or for the server to end before it."""
    await asyncio.wait({serving, event}, return_when=asyncio.FIRST_COMPLETED)
    event.cancel()


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers, and with an event for when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours: readyz turns 503 before anything stops."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()
