"""The folder of an embedded cluster is ours alone, or it is not used."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.embedded import folder
from shards.embedded.server import Server, initialise
from shards.embedded.state import FILE, load_state, new_state, save_state
from shards.errors import MachineError
from tests.support.servers import scratch_folder

NOBODY = 65534


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that the servers' account can enter, which pytest's own cannot be."""
    made = scratch_folder()
    yield made
    shutil.rmtree(made)


def test_a_folder_of_ours_is_taken(tmp_path: Path) -> None:
    made = folder.prepare(tmp_path / "cluster")
    assert (made / folder.LOGS).stat().st_mode & 0o777 == 0o700
    save_state(made, new_state(["shard-1"], 4))
    assert load_state(made) is not None
    assert (made / FILE).stat().st_mode & 0o777 == 0o600
    assert load_state(tmp_path) is None


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(MachineError, match="can be written to by others"):
        folder.prepare(tmp_path)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MachineError, match="is a symbolic link"):
        folder.prepare(tmp_path / "link")


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="is not a folder"):
        folder.prepare(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what somebody else owns")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(MachineError, match="belongs to nobody, not to root"):
        folder.prepare(tmp_path)


def test_a_prepared_state_or_log_is_refused(tmp_path: Path) -> None:
    made = folder.prepare(tmp_path / "cluster")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (FILE, f"{folder.LOGS}/shard-1.log"):
        (made / name).symlink_to(victim)
        with pytest.raises(MachineError):
            folder.open_ours(made / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        (made / name).unlink()
    save_state(made, new_state(["shard-1"], 4))
    (made / FILE).chmod(0o666)
    with pytest.raises(MachineError, match="alone can write to"):
        load_state(made)
    (made / f"{FILE}.partial").symlink_to(victim)
    (made / FILE).chmod(0o600)
    save_state(made, new_state(["shard-1"], 4))  # the link is removed, not followed
    assert victim.read_text() == "precious"


def test_a_servers_folder_is_a_real_one(tmp_path: Path) -> None:
    """A link there would have the folder that it leads to given to the servers' account."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    server = Server("catalog", tmp_path / "catalog", 0, Path())
    server.directory.symlink_to(elsewhere)
    with pytest.raises(MachineError, match="is not a real folder"):
        initialise(server, "secret", None)
    assert list(elsewhere.iterdir()) == []
    if os.geteuid() == 0:
        strangers = Server("s1", tmp_path / "s1", 0, Path())
        strangers.directory.mkdir()
        os.chown(strangers.directory, 12345, 12345)
        with pytest.raises(MachineError, match="belongs to uid 12345"):
            initialise(strangers, "secret", None)
