"""Kinds that are not built in: one with a field of each type, and any that somebody may declare."""

import string
from datetime import datetime
from typing import Any, Final

from hypothesis import strategies as st

from shards.declaration import snake_case
from shards.kinds import Direction, Field, Kind, Role, Type

CHARGER: Final = Kind(
    "charger",
    "chargerId",
    "charger_id",
    "One interval of a charger.",
    (
        Field("kwh", "kwh", "kWh delivered", role=Role.ENERGY, minimum=0, maximum=1_000, required=True),
        Field("powerKw", "power_kw", "kW", role=Role.POWER, minimum=-500, maximum=500, kept=True),
        Field("voltage", "voltage", "volts of the DC side", minimum=0, maximum=2_000, kept=True),
        Field("phases", "phases", "phases in use", Type.INT, minimum=1, maximum=3, kept=True),
        Field("plugged", "plugged", "whether a vehicle is plugged in", Type.BOOL, kept=True),
        Field("state", "state", "what it does", Type.TEXT, choices=("idle", "charging", "faulted"), required=True),
    ),
)

_LIMITS: Final = {Type.FLOAT8: (-1e9, 1e9), Type.FLOAT4: (-1e6, 1e6), Type.INT: (-1_000, 1_000)}
_WORDS: Final = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)


@st.composite
def fields(draw: st.DrawFn, name: str) -> Field:
    """A field of that name."""
    type_ = draw(st.sampled_from(list(Type)))
    low, high = _LIMITS.get(type_, (None, None))
    choices = tuple(draw(st.lists(_WORDS, min_size=1, max_size=5, unique=True))) if type_ is Type.TEXT else ()
    required, in_status = draw(st.booleans()), draw(st.booleans())
    return Field(
        name,
        snake_case(name),
        draw(st.sampled_from(["", "what it is"])) or name,
        type_,
        minimum=low,
        maximum=high,
        choices=choices,
        required=required,
        kept=in_status and not required,
        in_status=in_status,
    )


@st.composite
def kinds(draw: st.DrawFn, name: str = "pump", at_most: int = 8) -> Kind:
    """A kind with any fields; the first one is always shown in its status."""
    letters = draw(st.lists(st.sampled_from(string.ascii_lowercase), min_size=1, max_size=at_most, unique=True))
    found = [draw(fields(f"{letter}Value")) for letter in letters]
    first = found[0]
    found[0] = Field(**{**vars(first), "in_status": True, "kept": not first.required})
    if draw(st.booleans()):
        energy = Field("kwh", "kwh", "kwh", role=Role.ENERGY, minimum=0.0, direction=draw(st.sampled_from(Direction)))
        found.append(Field(**{**vars(energy), "kept": True}))
    return Kind(name, f"{name}Id", f"{name}_id", "What somebody declared.", tuple(found))


@st.composite
def values(draw: st.DrawFn, field: Field) -> Any:
    """A value that the field may have; None: left out."""
    if not field.required and draw(st.booleans()):
        return None
    low, high = field.minimum, field.maximum
    if field.type is Type.TEXT:
        return draw(st.sampled_from(field.choices))
    if field.type is Type.BOOL:
        return draw(st.booleans())
    if field.type is Type.INT:
        return draw(st.integers(int(low or 0), int(high or 0)))
    most = 1e6 if high is None else high
    if field.type is Type.FLOAT4:
        return draw(st.floats(low, most, width=32, allow_subnormal=False))
    return draw(st.floats(low, most, allow_subnormal=False))


@st.composite
def readings(draw: st.DrawFn, kind: Kind, devices: tuple[str, ...], moments: tuple[datetime, ...]) -> dict[str, Any]:
    """A reading of one of the devices at one of the moments, with whatever fields it has."""
    told = {field.name: draw(values(field)) for field in kind.fields}
    present = {name: value for name, value in told.items() if value is not None}
    moment = draw(st.sampled_from(moments))
    return {kind.id_name: draw(st.sampled_from(devices)), "timestamp": moment.isoformat(), **present}
