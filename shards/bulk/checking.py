"""Whether what a source gives can be stored: the rules of readings that come over HTTP, a column at a time. Pure."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.bulk.readings import Flags, Ints, Values
from shards.errors import InvalidArgument
from shards.kinds import Field, Kind, Role, Type

ID_MAX: Final = 64
_ID: Final = re.compile(r"[A-Za-z0-9._:*+|@=-]{1,64}")
_ARROW: Final = {
    Type.FLOAT8: pa.float64(),
    Type.FLOAT4: pa.float32(),
    Type.INT: pa.int32(),
    Type.BOOL: pa.bool_(),
    Type.TEXT: pa.string(),
}
_OFFSET: Final = r"([Zz]|[+-]\d\d(:?\d\d)?)\s*$"
_WORDS: Final = {**dict.fromkeys(("t", "true", "1", "yes"), True), **dict.fromkeys(("f", "false", "0", "no"), False)}
_TIME: Final = pa.timestamp("us", "UTC")


class BadRow(InvalidArgument):
    """A row that cannot be stored; the message says where it stands, which field it is, and why."""


@dataclass(frozen=True)
class Batch:
    """Rows of a source, whose first one is number `row` of `name`. The table's columns have the fields' names."""

    name: str
    row: int
    table: Any


@dataclass(frozen=True)
class Checked:
    """Rows that can be stored: places in `devices`, microseconds from 1970, and values by field of the kind."""

    devices: Sequence[str]
    device: Ints
    times: Ints
    values: Sequence[Values]

    def at(self, which: Any) -> "Checked":
        """Those at these places."""
        return Checked(self.devices, self.device[which], self.times[which], [each.at(which) for each in self.values])


@dataclass
class Checker:
    """Looks at batches of one kind. `earliest` and `latest`: of times. `zone`: of times that have none.

    `unit`: what whole numbers count from 1970 (s, ms, us, ns). `bad`: rows left out, if `skip_bad` says so.
    `partial`: a row may be a part of a reading; what that lacks is told when all of it is there.
    """

    kind: Kind
    earliest: datetime
    latest: datetime
    device: str | None = None
    zone: str | None = None
    unit: str | None = None
    skip_bad: bool = False
    partial: bool = False
    bad: list[str] = field(default_factory=list)

    def taken(self) -> list[str]:
        """The bad rows since it was asked last."""
        bad, self.bad = self.bad, []
        return bad

    def check(self, batch: Batch) -> Checked:
        """BadRow for the first row that cannot be stored, unless such are left out."""
        wrong = _Wrong(batch, np.zeros(batch.table.num_rows, np.bool_))
        devices, codes = self._devices(batch, wrong)
        times = self._times(batch, wrong)
        values = [self._values(batch, each, wrong) for each in self.kind.fields]
        self._energies(values, wrong)
        if wrong.told:
            if not self.skip_bad:
                raise BadRow(wrong.first())
            self.bad += wrong.every()
        checked = Checked(devices, codes, times, values)
        return checked.at(~wrong.flags) if wrong.told else checked

    def _devices(self, batch: Batch, wrong: "_Wrong") -> tuple[list[str], Ints]:
        name, rows = self.kind.id_name, batch.table.num_rows
        if name not in batch.table.schema.names:
            if self.device is None:
                raise InvalidArgument(f"{batch.name}: no column is {name}; say which one is it with --map, or --device")
            return [self.device], np.zeros(rows, np.int64)
        column = _combined(batch.table, name)
        if not pa.types.is_dictionary(column.type):
            column = _cast(batch, name, column, pa.string()).dictionary_encode()
        devices = ["" if each is None else str(each) for each in column.dictionary.to_pylist()] or [""]
        codes = pc.fill_null(column.indices, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        missing = pc.is_null(column.indices).to_numpy(zero_copy_only=False)
        wrong.add(missing, name, lambda _: "is required")
        good = np.array([_ID.fullmatch(each) is not None for each in devices], np.bool_)
        rule = f"must be 1 to {ID_MAX} of A-Z a-z 0-9 . _ : * + | @ = -"
        wrong.add(~good[codes] & ~missing, name, lambda at: f"{devices[codes[at]][:40]!r} {rule}")
        return devices, codes

    def _times(self, batch: Batch, wrong: "_Wrong") -> Ints:
        if "timestamp" not in batch.table.schema.names:
            raise InvalidArgument(
                f"{batch.name}: no column is timestamp: say which one it is with --map timestamp=COLUMN"
            )
        column = _combined(batch.table, "timestamp")
        wrong.add(pc.is_null(column).to_numpy(zero_copy_only=False), "timestamp", lambda _: "is required")
        moments = self._moments(batch, column, wrong)
        missing = pc.is_null(moments).to_numpy(zero_copy_only=False)
        times: Ints = pc.fill_null(pc.cast(moments, pa.int64()), 0).to_numpy(zero_copy_only=False)
        early, late = (round(each.timestamp() * 1e6) for each in (self.earliest, self.latest))
        wrong.add(
            (times < early) & ~missing,
            "timestamp",
            lambda at: f"{_shown(int(times[at]))} is before {self.earliest:%Y-%m-%d}",
        )
        wrong.add((times > late) & ~missing, "timestamp", lambda at: f"{_shown(int(times[at]))} is in the future")
        return times

    def _moments(self, batch: Batch, column: Any, wrong: "_Wrong") -> Any:
        """As instants; NULL where it cannot be read."""
        if self.unit is not None and _is_text(column):
            column = _read_each(column, pa.int64(), "timestamp", wrong, "is not a whole number")
        if pa.types.is_integer(column.type):
            if self.unit is None:
                raise InvalidArgument(f"{batch.name}: timestamp is a whole number: say --time-unit s, ms, us or ns")
            column = pc.cast(_cast(batch, "timestamp", column, pa.int64()), pa.timestamp(self.unit, "UTC"))
        elif _is_text(column):
            column = _times_in(column, wrong)
        elif not pa.types.is_timestamp(column.type):
            raise InvalidArgument(f"{batch.name}: timestamp is {column.type}, which is no time")
        if column.type.tz is None:
            column = self._in_zone(batch, column, wrong)
        return pc.cast(column, _TIME, safe=False)  # parts of a microsecond go

    def _in_zone(self, batch: Batch, column: Any, wrong: "_Wrong") -> Any:
        """Local times as instants; those that are there twice, or not at all, are wrong."""
        if self.zone is None:
            raise InvalidArgument(f"{batch.name}: its times have no time zone: say --time-zone UTC, or which one")
        first, last = (
            pc.assume_timezone(column, self.zone, ambiguous=each, nonexistent=each) for each in ("earliest", "latest")
        )
        unclear = pc.fill_null(pc.not_equal(first, last), False).to_numpy(zero_copy_only=False)
        wrong.add(unclear, "timestamp", lambda at: f"{column[at]} is twice in {self.zone}, or not at all")
        return first

    def _values(self, batch: Batch, of: Field, wrong: "_Wrong") -> Values:
        if of.name not in batch.table.schema.names:
            nothing = np.zeros(
                batch.table.num_rows, object if of.type is Type.TEXT else _ARROW[of.type].to_pandas_dtype()
            )
            if of.required and not self.partial:
                raise InvalidArgument(
                    f"{batch.name}: no column is {of.name}: say which one it is with --map {of.name}=COLUMN"
                )
            return Values(nothing, np.zeros(len(nothing), np.bool_))
        column = _combined(batch.table, of.name)
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        column = _read_each(column, _ARROW[of.type], of.name, wrong, f"is not {_what(of)}")
        there: Flags = pc.is_valid(column).to_numpy(zero_copy_only=False)
        if of.required and not self.partial:
            wrong.add(~there, of.name, lambda _: "is required")
        data: Any = column if of.type is Type.TEXT else pc.fill_null(column, False if of.type is Type.BOOL else 0)
        data = data.to_numpy(zero_copy_only=False)
        if of.type is Type.TEXT:
            good = pc.is_in(column, pa.array(list(of.choices), pa.string())).to_numpy(zero_copy_only=False)
            wrong.add(~good & there, of.name, lambda at: f"{str(data[at])[:40]!r} is none of {', '.join(of.choices)}")
        elif of.type is not Type.BOOL:
            for outside, words, limit in (
                (data < of.minimum if of.minimum is not None else None, "at least", of.minimum),
                (data > of.maximum if of.maximum is not None else None, "at most", of.maximum),
            ):
                if outside is not None:
                    wrong.add(outside & there, of.name, _limited(data, words, limit))
            if of.type in {Type.FLOAT8, Type.FLOAT4}:
                wrong.add(~np.isfinite(data) & there, of.name, lambda _: "is not finite")
        return Values(data, None if there.all() else there)

    def _energies(self, values: Sequence[Values], wrong: "_Wrong") -> None:
        """Where a device may send its count instead of an energy, a reading has one of them."""
        if self.kind.alternatives is None or self.partial:
            return
        energy, register = (values[self.kind.values.index(each)].present for each in self.kind.alternatives)
        names = self.kind.named(Role.ENERGY), self.kind.named(Role.REGISTER)
        wrong.add(~energy & ~register, names[0], lambda _: f"is required, or {names[1]} in its place")
        wrong.add(energy & register, names[1], lambda _: f"is given beside {names[0]}: a reading has one of them")


@dataclass
class _Wrong:
    """What is wrong with rows of a batch: the first thing of each."""

    batch: Batch
    flags: Flags
    told: dict[int, str] = field(default_factory=dict)

    def add(self, flags: Flags, name: str, why: Any) -> None:
        """These rows are wrong because of a field; `why` says so of one."""
        for at in np.flatnonzero(flags & ~self.flags).tolist():
            self.told[at] = f"{self.batch.name}: row {self.batch.row + at}: {name} {why(at)}"
        self.flags |= flags

    def first(self) -> str:
        """What is wrong with the first one."""
        return self.told[min(self.told)]

    def every(self) -> list[str]:
        """What is wrong with each, in their order."""
        return [self.told[at] for at in sorted(self.told)]


def _is_text(column: Any) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _times_in(column: Any, wrong: _Wrong) -> Any:
    """Texts as times; local ones, when none has an offset."""
    has_zone = pc.fill_null(pc.match_substring_regex(column, _OFFSET), False)
    wanted, words = (_TIME, "no time with an offset") if pc.any(has_zone).as_py() else (pa.timestamp("us"), "no time")
    try:
        return pc.cast(column, wanted)
    except pa.ArrowInvalid:
        tidy = pc.utf8_upper(pc.utf8_trim_whitespace(column))
        tidy = pc.replace_substring_regex(tidy, r"(\.\d{6})\d+", r"\1")  # parts of a microsecond go
        return _read_each(tidy, wanted, "timestamp", wrong, f"is {words}; one is 2026-05-01T00:00:00Z")


def _cast(batch: Batch, name: str, column: Any, wanted: Any) -> Any:
    try:
        return pc.cast(column, wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InvalidArgument(f"{batch.name}: {name} is {column.type}: {str(error)[:200]}") from None


def _limited(data: Any, words: str, limit: float | None) -> Any:
    return lambda at: f"is {data[at]:g}, and must be {words} {limit:g}"


def _combined(table: Any, name: str) -> Any:
    column = table.column(name)
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.combine_chunks() if column.num_chunks else pa.array([], column.type)


def _read_each(column: Any, wanted: Any, name: str, wrong: _Wrong, why: str) -> Any:
    """A column as another type; NULL, and told, where that cannot be."""
    if column.type == wanted:
        return column
    try:
        return pc.cast(column, wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    found = [_read(column[at], wanted) for at in range(len(column))]
    bad = np.array([each is None and column[at].is_valid for at, each in enumerate(found)], np.bool_)
    wrong.add(bad, name, lambda at: f"{str(column[at])[:40]!r} {why}")
    return pa.array(found, wanted)


def _read(value: Any, wanted: Any) -> Any:
    """As somebody else may have written it: yes or no by a letter, a whole number with a point."""
    try:
        if pa.types.is_string(value.type):
            if pa.types.is_boolean(wanted):
                return _WORDS.get(value.as_py(), None) if value.is_valid else None
            if pa.types.is_integer(wanted):
                value = pc.cast(value, pa.float64())
        return pc.cast(value, wanted).as_py()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _what(of: Field) -> str:
    words = {Type.INT: "a whole number", Type.BOOL: "true or false", Type.TEXT: "a text"}
    return words.get(of.type, "a number")


def _shown(us: int) -> str:
    try:
        return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "a time"


def renamed(
    kind: Kind, columns: Sequence[str], given: Mapping[str, str], left_out: Sequence[str], name: str
) -> dict[str, str]:
    """Column of a source -> field. `given`: field -> column. InvalidArgument for a column that is no field."""
    if len(set(columns)) < len(columns):
        twice = next(each for each in columns if list(columns).count(each) > 1)
        raise InvalidArgument(f"{name}: the column {twice[:40]!r} is there twice")
    fields = {kind.id_name: kind.id_column, "timestamp": "timestamp"}
    fields |= {each.name: each.column for each in kind.fields}
    if unknown := [each for each in given if each not in fields]:
        raise InvalidArgument(f"--map {unknown[0][:40]}: {kind} has no such field; it has {', '.join(fields)}")
    if absent := [each for each in given.values() if each not in columns]:
        raise InvalidArgument(f"{name}: there is no column {absent[0][:40]!r}; there are {', '.join(columns)[:200]}")
    found = {column: each for each, column in given.items()}
    for each, column in fields.items():
        if each not in given:
            found |= {own: each for own in (each, column) if own in columns and own not in found}
    for column in _unknown(columns, found, left_out):
        raise InvalidArgument(
            f"{name}: the column {column[:40]!r} is no field of {kind}: say --map FIELD={column[:40]}, "
            f"or --ignore {column[:40]}"
        )
    if len(set(found.values())) < len(found):
        twice = next(each for each in found.values() if list(found.values()).count(each) > 1)
        raise InvalidArgument(f"{name}: two columns are {twice}: say which one with --map {twice}=COLUMN")
    return found


def _unknown(columns: Sequence[str], found: Mapping[str, str], left_out: Sequence[str]) -> Iterator[str]:
    return (each for each in columns if each not in found and each not in left_out)
