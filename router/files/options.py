"""What a command line says about a file, as a layout."""

import codecs
import re
from dataclasses import dataclass, replace
from typing import Any, Final

from router.files.layout import Label, Layout, Name, unit_of
from router.files.reading import preset_of, zone_of
from shards.errors import InvalidArgument

_INTERVAL: Final = re.compile(r"([1-9][0-9]{0,5})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_FIELDS: Final = ("timestamp", "kwhConsumedAc", "registerKwh", "voltage", "meterId")


@dataclass(frozen=True)
class FileOptions:
    """As given; None: not given. `columns`: FIELD=COLUMN or FIELD=COLUMN+COLUMN; `where`: COLUMN=VALUE."""

    preset: str | None = None
    columns: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    time_zone: str | None = None
    time_format: str | None = None
    time_at: Label | None = None
    interval: str | None = None
    unit: str | None = None
    is_register: bool = False
    voltage: float | None = None
    delimiter: str | None = None
    decimal: str | None = None
    encoding: str | None = None


def layout_of(options: FileOptions) -> tuple[Layout, str | None]:
    """The layout, and what it is called: the preset, or --map; None when the file is one of ours.

    InvalidArgument names the option that cannot be.
    """
    told = None
    layout = Layout()
    if options.preset is not None:
        told, layout = f"the preset {options.preset}", preset_of(options.preset)
    changes: dict[str, Any] = {}
    if options.columns:
        told = told or "--map"
        changes |= _mapped(options.columns)
    if options.where:
        changes["where"] = {**layout.where, **_where(options.where)}
    if options.is_register:
        changes["is_register"] = True
    given = {
        "zone": options.time_zone,
        "formats": (options.time_format,) if options.time_format else None,
        "label": options.time_at,
        "interval_s": None if options.interval is None else _seconds(options.interval),
        "unit": options.unit,
        "voltage_v": options.voltage,
        "delimiter": _one_character("--delimiter", options.delimiter),
        "decimal": _decimal(options.decimal),
        "encoding": options.encoding,
    }
    changes |= {name: value for name, value in given.items() if value is not None}
    _check(options, told)
    return replace(layout, **changes), told


def _check(options: FileOptions, told: str | None) -> None:
    zone_of(options.time_zone)
    if options.unit is not None:
        unit_of(options.unit)
    if options.encoding is not None:
        try:
            codecs.lookup(options.encoding)
            "".encode(options.encoding)  # a codec may be of something else than text
        except (LookupError, ValueError):
            raise InvalidArgument(
                f"--encoding {options.encoding[:40]!r} is none: utf-8, latin-1, utf-16, ..."
            ) from None
    rules = (options.where, options.time_zone, options.time_format, options.time_at, options.interval, options.unit)
    if told is None and (any(rules) or options.is_register or options.voltage is not None):
        raise InvalidArgument(
            "--time-zone, --unit and the like are for files of others: say --preset NAME, or which columns hold what, "
            "as in --map timestamp=Date --map kwhConsumedAc=Usage"
        )


def _mapped(columns: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, tuple[Name, ...]] = {}
    for text in columns:
        name, equals, value = text.partition("=")
        if name not in _FIELDS or not equals or not value:
            raise InvalidArgument(f"--map {text[:80]!r} is not FIELD=COLUMN, with FIELD one of {', '.join(_FIELDS)}")
        if name in found:
            raise InvalidArgument(f"--map {name} is given twice; two columns are {name}=A+B")
        found[name] = tuple(value.split("+"))
    energies = [name for name in ("kwhConsumedAc", "registerKwh") if name in found]
    if len(energies) == 2:
        raise InvalidArgument("--map names both kwhConsumedAc and registerKwh: a reading has one of them")
    changes: dict[str, Any] = {}
    if "timestamp" in found:
        changes |= {"time": found["timestamp"], "day_hour": ()}
    if energies:
        changes |= {"energy": (found[energies[0]],), "is_register": energies[0] == "registerKwh"}
    if "meterId" in found:
        changes["device"] = "+".join(map(str, found["meterId"]))
    if "voltage" in found:
        changes["voltage"] = found["voltage"]
    return changes


def _where(texts: tuple[str, ...]) -> dict[str, re.Pattern[str]]:
    """Column -> any of the values that are given for it."""
    found: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InvalidArgument(f"--where {text[:80]!r} is not COLUMN=VALUE")
        found.setdefault(name, []).append(re.escape(value))
    return {name: re.compile("|".join(values), re.IGNORECASE) for name, values in found.items()}


def _seconds(text: str) -> float:
    match = _INTERVAL.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"--interval {text[:40]!r} is not a length of time, as in 30s, 15m, 1h or 1d")
    return float(match[1]) * _SECONDS[match[2]]


def _one_character(option: str, text: str | None) -> str | None:
    text = {"tab": "\t", "\\t": "\t"}.get(text or "", text)
    if text is not None and (len(text) != 1 or text in '\r\n\0"'):
        raise InvalidArgument(f"{option} must be one character, or tab")
    return text


def _decimal(text: str | None) -> str | None:
    if text not in {None, ".", ","}:
        raise InvalidArgument("--decimal must be . or ,")
    return text
