"""Lines of JSON objects, one by one: slow, and able to say what is wrong with one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import orjson
import pyarrow as pa

from shards.errors import InvalidArgument
from shards.kinds import Kind

_ROWS: Final = 131_072


class JsonLines:
    """Of a file called `name`, as tables of texts. `told`: takes lines that are none; None: they are refused."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        names: Mapping[str, str],
        left_out: Iterable[str],
        told: Callable[[str], None] | None,
    ) -> None:
        columns = {kind.id_column: kind.id_name} | {each.column: each.name for each in kind.fields}
        self._name, self._kind, self._told = name, kind, told
        self._names, self._left_out = {**columns, **names}, frozenset(left_out)

    def tables(self, lines: Iterable[str], skipped: int) -> Iterator[Any]:
        """Tables of texts, without the first objects. InvalidArgument names the line, unless somebody is told."""
        rows: list[dict[str, str | None]] = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if skipped:
                skipped -= 1
                continue
            try:
                rows.append(self._row(line))
            except ValueError as error:
                words = f"{self._name}:{number}: {error}"
                if self._told is None:
                    raise InvalidArgument(words) from None
                self._told(words)
            if len(rows) >= _ROWS:
                yield _of_texts(rows)
                rows = []
        if rows:
            yield _of_texts(rows)

    def _row(self, line: str) -> dict[str, str | None]:
        value = orjson.loads(line.removeprefix("\ufeff"))
        if not isinstance(value, dict):
            raise ValueError("a JSON object is expected")  # noqa: TRY004 - of what it says, not of our own types
        row: dict[str, str | None] = {}
        for name, each in value.items():
            if name in self._names:
                row[self._names[name]] = each if each is None or isinstance(each, str) else orjson.dumps(each).decode()
            elif name not in self._left_out:
                shown = name[:40]
                message = f"{shown!r} is no field of {self._kind}: say --map FIELD={shown}, or --ignore {shown}"
                raise ValueError(message)
        return row


def _of_texts(rows: list[dict[str, str | None]]) -> Any:
    names = sorted({name for row in rows for name in row})
    return pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in names})
