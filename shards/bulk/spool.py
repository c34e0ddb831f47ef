"""Readings on their way, in a folder: a file for each bucket and month, which is what is placed at once.

A source has its readings in any order. Sorted out first, each device's day is packed once.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from shards.buckets import BucketRange
from shards.bulk.checking import Checked
from shards.bulk.readings import Readings, Values
from shards.errors import InvalidArgument, MachineError
from shards.kinds import Field, Kind, Type

TOLD_MAX: Final = 100
STATE: Final = "load.json"
_DEVICES: Final = "devices.arrow"
_BUFFERED: Final = 2_000_000  # readings
_MONTHS: Final = 12 * 300  # from 1970: more than anybody needs
_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="lz4")


class State(msgspec.Struct):
    """Of a load: what it is of, whether everything was read, and what became of what is placed."""

    what: list[str]
    read: bool = False
    readings: int = 0
    bad_count: int = 0
    bad: list[str] = msgspec.field(default_factory=list)  # the first ones
    counts: dict[str, int] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, order=True)
class Unit:
    """The readings of a bucket in a month."""

    month: date
    bucket: int

    @property
    def file(self) -> str:
        return f"{self.month:%Y-%m}.{self.bucket}.arrow"


class Spool:
    """A folder of ours. `what`: the load that it is of."""

    def __init__(self, folder: Path, kind: Kind, buckets: BucketRange, what: Sequence[str]) -> None:
        self._folder, self._kind, self._buckets = folder, kind, buckets
        self._known: dict[str, int] = {}
        self._devices: list[str] = []
        self._bucket_of: list[int] = []
        self._waiting: dict[int, list[Any]] = {}
        self._size = 0
        self.state = self._begin(list(what))

    def _begin(self, what: list[str]) -> State:
        """Go on with the same load, if all of it was read. InvalidArgument when the folder is of something else."""
        noted = self._folder / STATE
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            others = [each for each in self._folder.iterdir() if each.name != STATE]
            if not noted.exists():
                if others:
                    raise InvalidArgument(
                        f"--spool {self._folder}: there is something else in it: name an empty folder"
                    )
                self._folder.chmod(0o700)
                return self._noted(State(what))
            state = msgspec.json.decode(noted.read_bytes(), type=State)
        except (OSError, msgspec.DecodeError) as error:
            raise InvalidArgument(f"--spool {self._folder}: {error}") from None
        if state.what != what:
            raise InvalidArgument(
                f"--spool {self._folder}: another load was interrupted there (or its source was changed): repeat that "
                "one, or remove the folder"
            )
        if not state.read:
            for each in others:
                each.unlink()
            return self._noted(State(what))
        self._devices = self._read_devices()
        return state

    def _noted(self, state: State) -> State:
        """A folder without it is somebody else's."""
        fresh = self._folder / f"{STATE}.new"
        fresh.write_bytes(msgspec.json.encode(state))
        fresh.replace(self._folder / STATE)
        return state

    def note(self) -> None:
        """The state, whole or as it was before."""
        self._noted(self.state)

    def tell(self, bad: Sequence[str]) -> None:
        """Rows that are not stored, and why."""
        self.state.bad_count += len(bad)
        self.state.bad += bad[: max(TOLD_MAX - len(self.state.bad), 0)]

    def add(self, some: Checked) -> None:
        """Rows, in their order. MachineError when there is no room."""
        devices = np.array([self._place(each) for each in some.devices], np.int64)
        codes = devices[some.device]
        buckets = np.array(self._bucket_of, np.int64)[codes]
        months = (some.times.astype("datetime64[us]").astype("datetime64[M]")).astype(np.int64)
        parts = buckets * _MONTHS + months
        columns = map(_column, self._kind.fields, some.values)
        table = pa.table([pa.array(codes, pa.int32()), pa.array(some.times), *columns], self._names)
        order = np.argsort(parts, kind="stable")
        different, begins = np.unique(parts[order], return_index=True)
        table = table.take(pa.array(order))
        for at, part in enumerate(different.tolist()):
            upto = begins[at + 1] if at + 1 < len(begins) else len(order)
            self._waiting.setdefault(part, []).append(table.slice(begins[at], upto - begins[at]))
        self._size += len(order)
        self.state.readings += len(order)
        if self._size >= _BUFFERED:
            self._flush()

    @property
    def _names(self) -> list[str]:
        return ["device", "timestamp", *self._kind.values]

    def _place(self, device: str) -> int:
        at = self._known.get(device)
        if at is None:
            at = self._known[device] = len(self._known)
            self._devices.append(device)
            self._bucket_of.append(self._buckets.bucket(device))
        return at

    def _flush(self) -> None:
        try:
            for part, tables in self._waiting.items():
                with (self._folder / _unit_of(part).file).open("ab") as file:
                    whole = pa.concat_tables(tables).combine_chunks()
                    with pa.ipc.new_stream(file, whole.schema, options=_OPTIONS) as writer:
                        writer.write_table(whole)
        except OSError as error:
            raise MachineError(f"--spool {self._folder}: {error.strerror or error}") from None
        self._waiting, self._size = {}, 0

    def finish(self) -> None:
        """Everything was read: from now on it can be gone on with."""
        self._flush()
        devices = pa.table([pa.array(self._devices, pa.string())], ["device"])
        try:
            with (
                pa.OSFile(str(self._folder / _DEVICES), "wb") as file,
                pa.ipc.new_stream(file, devices.schema) as writer,
            ):
                writer.write_table(devices)
            for each in self._folder.iterdir():
                _sync(each)
            self.state.read = True
            self.note()
        except OSError as error:
            raise MachineError(f"--spool {self._folder}: {error.strerror or error}") from None

    def _read_devices(self) -> list[str]:
        with pa.OSFile(str(self._folder / _DEVICES)) as file, pa.ipc.open_stream(file) as reader:
            found: list[str] = reader.read_all().column(0).to_pylist()
            return found

    def units(self) -> list[Unit]:
        """What is to be placed, by month, so that one bucket is not waited for by all."""
        files = (each.name for each in self._folder.glob("*.arrow") if each.name != _DEVICES)
        return sorted(Unit(date.fromisoformat(f"{name[:7]}-01"), int(name[8:].partition(".")[0])) for name in files)

    def load(self, unit: Unit) -> Readings:
        """A unit's readings by device and time, those with one key in the order in which they came.

        Their columns are the kind's fields.
        """
        path, tables = self._folder / unit.file, []
        try:
            with pa.OSFile(str(path)) as file:
                while file.tell() < file.size():
                    with pa.ipc.open_stream(file) as reader:
                        tables.append(reader.read_all())
        except (pa.ArrowInvalid, OSError) as error:
            raise MachineError(f"{path} is damaged ({error}): remove the folder, and begin anew") from None
        table = pa.concat_tables(tables).combine_chunks()
        codes = table.column("device").to_numpy()
        names = self._devices
        used, device = np.unique(codes, return_inverse=True)
        order = sorted(range(len(used)), key=lambda at: names[used[at]])
        ranks = np.empty(len(used), np.int32)
        ranks[order] = np.arange(len(used), dtype=np.int32)
        values = [_values(table, field) for field in self._kind.fields]
        devices = [names[used[at]] for at in order]
        return Readings(devices, ranks[device], table.column("timestamp").to_numpy(), values).sorted()

    def done(self, unit: Unit) -> None:
        """A unit is placed, and the state says so first: what is placed again counts as duplicates."""
        self.note()
        (self._folder / unit.file).unlink()

    def remove(self) -> None:
        """Everything is placed."""
        for each in self._folder.iterdir():
            each.unlink()
        self._folder.rmdir()


def _unit_of(part: int) -> Unit:
    bucket, month = divmod(part, _MONTHS)
    return Unit(date(1970 + month // 12, month % 12 + 1, 1), bucket)


def _column(of: Field, values: Values) -> Any:
    """With its type said: a batch in which nothing of a text is there does not tell."""
    kind = pa.string() if of.type is Type.TEXT else None
    return pa.array(values.data, kind, mask=None if values.there is None else ~values.there)


def _values(table: Any, of: Field) -> Values:
    column = table.column(of.column)
    there = column.is_valid().to_numpy()
    if of.type is not Type.TEXT:
        column = column.fill_null(False if of.type is Type.BOOL else 0)
    return Values(column.to_numpy(), None if there.all() else there)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
