"""Ports for servers are none that the system could give to a connection first."""

import socket
from pathlib import Path

import pytest

from shards.embedded import ports
from shards.errors import MachineError


def test_ports_are_free_and_below_those_of_connections() -> None:
    found = ports.free_ports(50)
    assert len(set(found)) == 50
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        assert max(found) < 32_768 <= connection.getsockname()[1]


def test_a_port_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (there := tmp_path / "range").write_text("16000\t60999\n")
    monkeypatch.setattr(ports, "_EPHEMERAL", there)
    with socket.socket() as taken:
        (port,) = ports.free_ports(1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert not ports.port_is_free(port)
        monkeypatch.setattr(ports, "_LOWEST", port)
        assert port not in ports.free_ports(20)


@pytest.mark.parametrize("text", ["1024 65535", "", "none"])
def test_a_range_that_leaves_no_room_is_taken_for_the_usual_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (there := tmp_path / "range").write_text(text)
    monkeypatch.setattr(ports, "_EPHEMERAL", there)
    assert 15_000 <= ports.free_ports(1)[0] < 32_768


def test_too_many_are_refused() -> None:
    with pytest.raises(MachineError, match="no 50000 ports are free"):
        ports.free_ports(50_000)
