"""Commands of voltroute, as an operator gives them."""

import asyncio
import sys
from pathlib import Path
from typing import Final

from bench.measure import MeasurementError
from bench.systems import System

TIMEOUT_S: Final = 600


async def command(system: System, *arguments: str, remote: bool = False) -> bytes:
    """`voltroute ...` for the system's folder, and what it says; MeasurementError when it fails. `remote`: by URL."""
    where = ("--url", system.url) if remote else ("--data", str(system.data))
    program = Path(sys.executable).with_name("voltroute")
    process = await asyncio.create_subprocess_exec(
        program, *arguments, *where, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT_S):
        said, shown = await process.communicate()
    if process.returncode:
        message = f"voltroute {' '.join(arguments)}: {shown.decode(errors='replace')[-500:]}"
        raise MeasurementError(message)
    return said
