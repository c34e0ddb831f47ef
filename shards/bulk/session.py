"""One kind in one bucket of a tenant, in a session of its shard: what placing readings there has in common.

Tables of the session hold what is under way; each transaction leaves them empty.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final

from shards.bulk.readings import Ints, Readings
from shards.kinds import Kind
from shards.postgres.connections import Connection
from shards.postgres.sql import for_kind, quote_identifier
from shards.storage.packing import Shape, differing, readings
from shards.tiers.steps import PackingFailed
from shards.tiers.watching import Watch, watch_nothing

_EPOCH: Final = date(1970, 1, 1)
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MONTH: Final = "SELECT make_packed_month($1, $2::smallint, $3::date)"
_TABLES: Final = "SELECT make_tier_tables($1, $2::smallint, '')"
_COUNTED: Final = "UPDATE tier SET packed_readings = packed_readings + $3 WHERE bucket = $1 AND kind = $2"
# As rollups have them, but in whole numbers of 64 bits.
_SUMS: Final = (
    "at timestamptz, bucket smallint, tenant_id smallint, readings integer, energies integer, registers integer, "
    "temperatures integer, energy bigint, temperature bigint, most double precision"
)
_OF_HOURS: Final = '{0} varchar(64) COLLATE "C", minutes bigint, counts count_span, counted_until timestamptz'
# Devices' days: of packed rows, and of late readings.
OF_DAYS: Final = (
    "bucket = $1::smallint AND tenant_id = $2::smallint "
    "AND ({id}, day) IN (SELECT * FROM unnest($3::varchar[], $4::date[]))"
)
LATE_OF_DAYS: Final = OF_DAYS.replace("day)", "(timestamp AT TIME ZONE 'UTC')::date)", 1)


@dataclass
class Outcome:
    """What became of readings."""

    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    too_old: int = 0

    def add(self, other: "Outcome") -> None:
        """Both together."""
        self.accepted += other.accepted
        self.duplicates += other.duplicates
        self.conflicts += other.conflicts
        self.too_old += other.too_old


@dataclass
class Session:
    """`summed`: the kind has rollups."""

    connection: Connection
    kind: Kind
    shape: Shape
    bucket: int
    tenant: int
    summed: bool = True
    at: Watch = watch_nothing
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def place(self) -> tuple[int, int]:
        return self.bucket, self.tenant

    @property
    def columns(self) -> list[str]:
        """Of a packed row."""
        return [name.strip().strip('"') for name in self.shape.listed.split(",")]

    @property
    def keyed(self) -> Kind | None:
        """As which it has rollups."""
        return self.kind if self.summed else None

    def sql(self, template: str) -> str:
        """With the kind's names."""
        return for_kind(template, self.kind)

    def table(self, what: str) -> str:
        """A table of the session: staged, known, packed, hours or minutes."""
        return f"bulk_{what}_{self.kind}"

    async def prepare(self, months: Sequence[date]) -> None:
        """The months' partitions, and the tables. The bucket is held."""
        await self.connection.execute(_TABLES, self.kind.name, self.bucket)
        for month in months:
            await self.connection.execute(_MONTH, self.kind.name, self.bucket, month)
        reading = f"SELECT {self.shape.reading} FROM {quote_identifier(self.kind.history)}"
        like = "(LIKE {0} INCLUDING COMPRESSION) ON COMMIT DELETE ROWS"
        wanted = {
            "staged": f"ON COMMIT DELETE ROWS AS {reading} WITH NO DATA",
            "known": f"ON COMMIT DELETE ROWS AS SELECT *, false AS late FROM ({reading}) AS h WITH NO DATA",
            "packed": like.format(quote_identifier(self.kind.packed)),
            "hours": f"({_SUMS}, {_OF_HOURS.format(self.shape.key)}) ON COMMIT DELETE ROWS",
            "minutes": f"({_SUMS}) ON COMMIT DELETE ROWS",
        }
        for what, how in wanted.items():
            name = quote_identifier(self.table(what))
            await self.connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} {how}")

    async def stage(self, some: Readings) -> None:
        """Readings into the session's table."""
        await self.connection.copy_records_to_table(self.table("staged"), records=self._rows(some))

    def _rows(self, some: Readings) -> Iterator[tuple[object, ...]]:
        """As `Shape.reading` lists them."""
        columns = [each.listed() for each in some.values]
        devices = [some.devices[each] for each in some.device.tolist()]
        for device, moment, *values in zip(devices, moments(some.times), *columns, strict=True):
            yield device, self.tenant, self.bucket, moment, *values

    async def compare(self, keys: tuple[list[str], list[date]]) -> None:
        """PackingFailed unless what is staged is what is packed of these days, bit by bit."""
        staged = quote_identifier(self.table("staged"))
        again = readings(self.shape, f"(SELECT * FROM {{packed}} WHERE {OF_DAYS})")
        query = self.sql(differing(self.shape, staged, f"({again})"))
        if wrong := await self.connection.fetchval(query, *self.place, *keys):
            raise PackingFailed(f"bucket {self.bucket} of {self.kind}: {wrong} packed readings are not those given")

    async def count(self, readings_: int) -> None:
        """So many more are packed."""
        await self.connection.execute(_COUNTED, self.bucket, self.kind.name, readings_)


def moments(times: Ints) -> Iterator[datetime]:
    """Times as Python has them."""
    return (_START + timedelta(microseconds=each) for each in times.tolist())


def day_of(number: int) -> date:
    """A day by its number from 1970."""
    return _EPOCH + timedelta(days=number)


def keys_of(some: Readings) -> tuple[list[str], list[date]]:
    """The devices' days in it, in its order."""
    begins = some.device_days()
    devices = [some.devices[each] for each in some.device[begins].tolist()]
    return devices, [day_of(each) for each in some.days[begins].tolist()]
