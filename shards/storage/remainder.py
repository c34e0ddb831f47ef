"""Readings beside rollups, as SQL: what they do not hold yet, and single readings of what they do.

A statement has `mark`: of each bucket, since when what was ingested is not in its rollups.
"""

from typing import Final

from shards.kinds import Kind
from shards.storage.tiers import SEVERAL, Place, columns_of, hot, late, packed

ROLLED: Final = "ARRAY(SELECT bucket FROM mark)"
# Found by when it came: that looks like few rows to the planner, and the period does not.
RECENT: Final = "{row}.ingested_at >= (SELECT min(since) FROM mark) AND {row}.ingested_at < 'infinity'"
_INGESTED: Final = ", h.ingested_at"


class Remainder:
    """Queries of a kind's readings in places, beside `mark`."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._columns = columns_of(kind, (kind.energy, kind.register, kind.temperature))

    def _unpacked(self, place: Place, ingested: str) -> str:
        rows = " UNION ALL ".join(tier(self._kind, place, self._columns, _INGESTED) for tier in (hot, late))
        return f"SELECT e.* FROM ({rows}) AS e JOIN mark AS m ON m.bucket = e.bucket WHERE e.ingested_at {ingested}"

    def fresh(self, which: str, after: str, until: str) -> str:
        """What rollups do not hold."""
        return self._unpacked(Place(f"{which} AND {RECENT}", after, until), ">= m.since")

    def known(self, which: str, after: str, until: str, within: tuple[str, str] | None = None) -> str:
        """What they hold. `within`: times as they are given, between which the others are when they come of a row."""
        rows, days = which, which
        if within is not None:
            rows += f" AND {{row}}.timestamp > {within[0]} AND {{row}}.timestamp <= {within[1]}"
            first, last = (f"({moment} AT TIME ZONE 'UTC')::date" for moment in within)
            days += f" AND {{row}}.day >= {first} AND {{row}}.day <= {last}"
        return f"{self._unpacked(Place(rows, after, until), '< m.since')} UNION ALL {self._days(days, after, until)}"

    def edges(self) -> str:
        """What they hold of a time after $2 up to $6, and after $7 up to $3; either may be none."""
        times = ("{row}.timestamp > $2 AND {row}.timestamp <= $6", "{row}.timestamp > $7 AND {row}.timestamp <= $3")
        either = Place(f"{SEVERAL} AND ({' OR '.join(f'({each})' for each in times)})")
        days = (
            self._days(f"{SEVERAL} AND {after}::timestamptz < {until}::timestamptz", after, until)
            for after, until in (("$2", "$6"), ("$7", "$3"))
        )
        return " UNION ALL ".join([self._unpacked(either, "< m.since"), *days])

    def _days(self, which: str, after: str, until: str) -> str:
        place = Place(f"{which} AND {{row}}.bucket = ANY({ROLLED})", after, until)
        return packed(self._kind, place, self._columns, ", NULL::timestamptz AS ingested_at")
