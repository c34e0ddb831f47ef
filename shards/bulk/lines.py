"""InfluxDB's line protocol: `measurement,tag=x field=1.5,other=2i 1777593660000000000`.

What exports it writes the fields of one reading as lines far apart: each gives a part of a reading, which is put
together when all lines are there (see `Readings.merged`).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa

from shards.errors import InvalidArgument

_ROWS: Final = 131_072
_WORD: Final = r"(?:[^,=\s\\]|\\.)+"
_VALUE: Final = r'(?:"(?:[^"\\]|\\.)*"|[^,\s"]+)'
_LINE: Final = re.compile(
    rf"((?:[^,\s\\]|\\.)+)((?:,{_WORD}={_WORD})*)\s+({_WORD}={_VALUE}(?:,{_WORD}={_VALUE})*)(?:\s+(-?\d+))?\s*$"
)
_TAG: Final = re.compile(rf",({_WORD})=({_WORD})")
_FIELD: Final = re.compile(rf"({_WORD})=({_VALUE})")
_ESCAPED: Final = re.compile(r"\\(.)")
_WORDS: Final = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), False),
}


class Lines:
    """Lines of a file called `name`; `measurement`: those of one alone. `found`: tag or field -> field of a reading."""

    def __init__(self, name: str, measurement: str | None, found: Mapping[str, str], left_out: Iterable[str]) -> None:
        self._name, self._measurement, self._found, self._left_out = name, measurement, found, frozenset(left_out)

    def tables(self, lines: Iterable[str]) -> Iterator[Any]:
        """Tables with a row for each line. InvalidArgument names the line that is none."""
        rows: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if text and not text.startswith("#"):
                row = self._row(number, text)
                if row is not None:
                    rows.append(row)
            if len(rows) >= _ROWS:
                yield self._table(rows)
                rows = []
        if rows:
            yield self._table(rows)

    def _row(self, number: int, text: str) -> dict[str, Any] | None:
        match = _LINE.match(text)
        if match is None:
            raise InvalidArgument(f"{self._name}:{number}: {text[:60]!r} is no line of the protocol")
        measurement, tags, fields, time = match.groups()
        if self._measurement is not None and _plain(measurement) != self._measurement:
            return None
        if time is None:
            raise InvalidArgument(f"{self._name}:{number}: there is no time")
        row: dict[str, Any] = {"timestamp": int(time)}
        pairs = [(name, _plain(value)) for name, value in _TAG.findall(tags)]
        pairs += [(name, _value(value)) for name, value in _FIELD.findall(fields)]
        for written, value in pairs:
            name = _plain(written)
            if name in self._found:
                row[self._found[name]] = value
            elif name not in self._left_out:
                shown = name[:40]
                words = f"{shown!r} is no field: say --map FIELD={shown}, or --ignore {shown}"
                raise InvalidArgument(f"{self._name}:{number}: {words}")
        return row

    def _table(self, rows: list[dict[str, Any]]) -> Any:
        names = sorted({name for row in rows for name in row})
        try:
            return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InvalidArgument(f"{self._name}: values of one field are of different types: {error}") from None


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text


def _value(text: str) -> Any:
    """A number, a yes or no, or a text. What looks like none stays as it is, and is told by its field."""
    if text.startswith('"'):
        return _plain(text[1:-1])
    if text in _WORDS:
        return _WORDS[text]
    try:
        return float(text.rstrip("iu"))
    except ValueError:
        return text
