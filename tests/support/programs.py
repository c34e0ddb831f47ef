"""Programs that a test needs beside Python: where they were installed for it, it must run."""

import os
import shutil

import pytest


def must_run() -> bool:
    """On CI, where what such tests need was installed, they do not skip."""
    return bool(os.environ.get("TEST_SYSTEM_TOOLS"))


def need(program: str) -> None:
    """Skip the test where the program is not installed, but on CI."""
    if shutil.which(program) is None:
        assert not must_run(), f"{program} is not installed here"
        pytest.skip(f"{program} is not installed here")
