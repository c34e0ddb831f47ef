"""Servers as others run them: with a clock that steps, with messages in another language."""

import shutil
import subprocess
from pathlib import Path

from shards.embedded.binaries import find_binaries

LIBRARIES = [Path(f"/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1") for machine in ("x86_64", "aarch64")]
DEBIAN = Path("/usr/lib/postgresql/15/bin")
_WRAPPER = """#!/bin/sh
for word; do [ "$before" = -D ] && data=$word; before=$word; done
[ -f "$data.clock" ] && export LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE="$data.clock" FAKETIME_CACHE_DURATION=1 \\
    FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1 FAKETIME_NO_CACHE=1
exec {postgres} "$@"
"""


def faketime_library() -> Path | None:
    """The library that changes a program's clock; None where it is not installed."""
    return next((path for path in LIBRARIES if path.exists()), None)


def binaries_with_clock(folder: Path, library: Path) -> Path:
    """PostgreSQL's programs, but that a server reads its clock's offset from `<data folder>.clock`, if there."""
    real = find_binaries()
    made = folder / "bin"
    made.mkdir(mode=0o755)
    folder.chmod(0o755)
    for program in real.iterdir():
        if program.name != "postgres":
            (made / program.name).symlink_to(program)
    wrapper = made / "postgres"
    wrapper.write_text(_WRAPPER.format(library=library, postgres=real / "postgres"))
    wrapper.chmod(0o755)
    return made


def set_clock(folder: Path, name: str, offset: str) -> None:
    """Step the clock of a server: "-30s", "+10m", "+0". It holds from the next second on."""
    clock = folder / name / "data.clock"
    partial = clock.with_suffix(".partial")
    partial.write_text(offset + "\n")
    partial.chmod(0o644)
    partial.rename(clock)


def has_german() -> bool:
    """Whether Debian's PostgreSQL 15 and a German locale are here (the embedded build speaks English only)."""
    if not (DEBIAN / "postgres").exists() or shutil.which("locale") is None:
        return False
    known = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=False).stdout
    return "de_DE.utf8" in known.split()
