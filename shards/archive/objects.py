"""An object of the archive: a Parquet file of one month of a bucket and kind. What is here takes a while: use threads.

Sorted by device, tenant and time within a row group; zstd, statistics, a page index, a checksum of every page. What it
is stands in its metadata, under `voltroute`.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, Final

import orjson

from shards.archive.rows import Month, arrow
from shards.archive.store import FOLDER, Damaged
from shards.errors import Refused

METADATA: Final = b"voltroute"
FORMAT: Final = 1
_KEY: Final = re.compile(
    rf"{FOLDER}/kind=([a-z0-9_]+)/month=([0-9]{{4}}-[0-9]{{2}})/bucket=([0-9]+)/[0-9a-f]{{16}}\.parquet"
)


def key_of(month: Month, sha256: str) -> str:
    """Where an object is: by what it is and holds, so that nothing is ever overwritten by something else."""
    return f"{FOLDER}/kind={month.kind}/month={month.first:%Y-%m}/bucket={month.bucket:04d}/{sha256[:16]}.parquet"


def month_of(key: str) -> tuple[str, int, date] | None:
    """What an object is of, by its key: kind, bucket, first day; None for a key that is none of ours."""
    found = _KEY.fullmatch(key)
    return None if found is None else (found[1], int(found[3]), date.fromisoformat(f"{found[2]}-01"))


def described(month: Month, cluster_id: str, readings: int) -> dict[bytes, bytes]:
    """What an object says of itself."""
    told = {
        "format": FORMAT,
        "cluster": cluster_id,
        "kind": month.kind,
        "bucket": month.bucket,
        "month": f"{month.first:%Y-%m}",
        "readings": readings,
    }
    return {METADATA: orjson.dumps(told)}


def digest(path: Path) -> tuple[int, str]:
    """How large a file is, and its SHA-256."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


class Writer:
    """Writes an object, a table for each row group."""

    def __init__(self, path: Path, month: Month, metadata: dict[bytes, bytes]) -> None:
        pa = arrow()
        # Their differences are small; values repeat, and times do not.
        others = [name for name in month.schema().names if name != "timestamp"]
        self._writer = pa.parquet.ParquetWriter(
            path,
            month.schema(metadata),
            compression="zstd",
            use_dictionary=others,
            column_encoding={"timestamp": "DELTA_BINARY_PACKED"},
            write_page_index=True,
            write_page_checksum=True,
            write_statistics=True,
        )
        self.readings = 0

    def write(self, table: Any) -> None:
        """A row group."""
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self.readings += table.num_rows

    def close(self) -> None:
        """All of it is in the file."""
        self._writer.close()


class Reader:
    """Reads a file that came from the store, every page checked. Damaged when it is no such object, or broken."""

    def __init__(self, path: Path, key: str) -> None:
        pa = arrow()
        self._key = key
        try:
            self._file = pa.parquet.ParquetFile(path, page_checksum_verification=True)
            told = orjson.loads((self._file.schema_arrow.metadata or {})[METADATA])
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise Damaged(f"{key} is no object of an archive: {_first_line(error)}") from error
        self.told: dict[str, Any] = told
        self.readings = int(self._file.metadata.num_rows)

    def expect(self, cluster_id: str, kind: str, bucket: int, month: date) -> None:
        """Refused when it is another cluster's; Damaged when it is of another month."""
        if self.told.get("cluster") != cluster_id:
            raise Refused(f"{self._key} is of another cluster, {self.told.get('cluster')}")
        if (self.told.get("kind"), self.told.get("bucket"), self.told.get("month")) != (kind, bucket, f"{month:%Y-%m}"):
            raise Damaged(f"{self._key} is not {month:%Y-%m} of bucket {bucket} of {kind}")

    @property
    def names(self) -> list[str]:
        """Its columns."""
        found: list[str] = self._file.schema_arrow.names
        return found

    @property
    def parts(self) -> int:
        """How many row groups it has."""
        return int(self._file.metadata.num_row_groups)

    def part(self, number: int) -> Any:
        """A row group."""
        pa = arrow()
        try:
            return self._file.read_row_group(number)
        except (pa.ArrowException, OSError) as error:
            raise Damaged(f"{self._key} is broken: {_first_line(error)}") from error

    def check(self) -> None:
        """Read all of it."""
        for number in range(self.parts):
            self.part(number)

    def close(self) -> None:
        """Not read any more."""
        self._file.close()


def same(archived: Any, packed: Any) -> bool:
    """Whether two tables hold the same, bit by bit: also 0.0 and -0.0 differ.

    The other one may have columns that were added since; those of a month that was sealed hold nothing.
    """
    names = archived.schema.names
    added = [name for name in packed.schema.names if name not in names]
    if archived.num_rows != packed.num_rows or not set(names) <= set(packed.schema.names):
        return False
    if any(packed[name].null_count < packed.num_rows for name in added):
        return False
    return all(a.equals(b) for a, b in zip(_bits(archived), _bits(packed.select(names)), strict=True))


def _bits(table: Any) -> Iterator[Any]:
    pa = arrow()
    for column in table.columns:
        whole = column.combine_chunks()
        if isinstance(whole, pa.ChunkedArray):
            whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
        if pa.types.is_floating(whole.type):
            whole = whole.view(pa.int64() if whole.type == pa.float64() else pa.int32())
        yield whole


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
