import pytest

from shards.errors import ClusterError
from shards.postgres.migrate import CATALOG, SHARD, Migration, load, pending

KNOWN = [Migration(1, "one", "SELECT 1"), Migration(2, "two", "SELECT 2")]


def applied(*migrations: Migration) -> list[tuple[int, str, str]]:
    return [(m.version, m.name, m.checksum) for m in migrations]


@pytest.mark.parametrize("target", [CATALOG, SHARD])
def test_the_files_are_numbered_and_not_empty(target: str) -> None:
    found = load(target)
    assert [m.version for m in found] == list(range(1, len(found) + 1))
    assert all(m.sql.strip() for m in found)


def test_what_is_pending() -> None:
    assert pending(KNOWN, []) == KNOWN
    assert pending(KNOWN, applied(KNOWN[0])) == KNOWN[1:]
    assert pending(KNOWN, applied(*KNOWN)) == []


def test_a_changed_migration_is_refused() -> None:
    with pytest.raises(ClusterError, match="0001_one was applied with other content"):
        pending(KNOWN, applied(Migration(1, "one", "SELECT 9")))


def test_a_newer_database_is_refused() -> None:
    with pytest.raises(ClusterError, match="newer than this release"):
        pending(KNOWN, applied(*KNOWN, Migration(3, "three", "")))
