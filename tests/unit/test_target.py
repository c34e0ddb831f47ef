"""Which cluster a command is about."""

from pathlib import Path

import pytest

from router.cli import target
from shards.errors import InvalidArgument, MachineError


def test_an_account_without_a_home_is_told_what_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `docker run --user 10001` gives: it once ended in a traceback."""

    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setattr("os.geteuid", lambda: 10_001)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    with pytest.raises(MachineError, match="no home folder: say --data DIR, or set VOLTROUTE_DATA"):
        target.find_catalog(None, target.load_settings())
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert target.default_data() == Path("/data/voltroute/default")


def test_secrets_are_read_from_where_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text("postgresql://u:p@h/d\n")
    monkeypatch.setenv("VOLTROUTE_CATALOG_DSN", f"@{file}")
    assert target.find_catalog(None, target.load_settings()) == "postgresql://u:p@h/d"
    monkeypatch.setenv("MINE", " text ")
    assert target.text_of("env:MINE", "key") == "text"
    with pytest.raises(InvalidArgument, match="env:NOTHING: there is no key"):
        target.text_of("env:NOTHING", "key")
    with pytest.raises(InvalidArgument, match="No such file"):
        target.dsn_of("@/nowhere/dsn")
