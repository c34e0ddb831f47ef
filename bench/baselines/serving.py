"""Running a baseline: uvicorn with uvloop and httptools, as voltroute runs, on a free port."""

import asyncio
import json
import signal
import socket
import sys

import uvicorn
import uvloop
from starlette.applications import Starlette


def run(app: Starlette) -> None:
    """Serve on 127.0.0.1 until SIGTERM; prints {"url": ...} first."""
    uvloop.run(_serve(app))


async def _serve(app: Starlette) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = uvicorn.Server(uvicorn.Config(app, http="httptools", log_level="warning", access_log=False))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, server, "should_exit", True)
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}) + "\n")
    sys.stdout.flush()
    await server.serve(sockets=[listener])
