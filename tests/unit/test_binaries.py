"""Finding PostgreSQL's programs."""

import os
import pwd
from pathlib import Path

import pytest

from shards.embedded.binaries import MAJOR_MIN, enterable, find_binaries, major_version
from shards.errors import ClusterError


def programs(folder: Path, words: str) -> Path:
    for name in ("postgres", "initdb"):
        (folder / name).write_text(f"#!/bin/sh\necho '{words}'\n")
        (folder / name).chmod(0o755)
    return folder


def test_the_wheels_programs_are_found() -> None:
    assert major_version(find_binaries()) >= MAJOR_MIN


@pytest.mark.parametrize(
    ("words", "major"),
    [("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", 15), ("postgres (PostgreSQL) 19beta1", 19)],
)
def test_versions(tmp_path: Path, words: str, major: int) -> None:
    assert major_version(programs(tmp_path, words)) == major
    assert find_binaries(str(tmp_path)) == tmp_path


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="holds no postgres"):
        find_binaries(str(tmp_path))
    with pytest.raises(ClusterError, match="15 or newer"):
        find_binaries(str(programs(tmp_path, "postgres (PostgreSQL) 9.6.24")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another account")
def test_a_folder_that_shuts_the_account_out(tmp_path: Path) -> None:
    account = pwd.getpwnam("nobody")
    inner = tmp_path / "inner"
    inner.mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    assert enterable(inner, account)
    tmp_path.chmod(0o700)
    assert not enterable(inner, account)
    assert enterable(inner, None)
