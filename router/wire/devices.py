"""The wire types of devices: what they sent, what is known of them, and how they are paired."""

from datetime import datetime
from functools import cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from router.wire.answers import Answer
from router.wire.readings import DeviceId, Timestamp, title
from shards.declaration import camel_case
from shards.kinds import REGISTER_MAX_KWH, Kind, Role


class PairingBody(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A meter feeds a vehicle during (validFrom, validTo]; null: until further notice."""

    vehicle_id: DeviceId
    meter_id: DeviceId
    valid_from: Timestamp
    valid_to: Timestamp | None = None


PowerKw = Annotated[
    float, Meta(ge=0.001, le=1_000_000, description="largest power; more energy than it allows is suspect")
]
RegisterMax = Annotated[
    float, Meta(ge=1, le=REGISTER_MAX_KWH, description="count at which the register begins again at 0")
]
BatteryKwh = Annotated[float, Meta(ge=0.1, le=100_000, description="capacity of the battery when it was new")]
Label = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$(?!\n)", description="what people call it")]


def _interval(kind: Kind) -> Any:
    text = f"seconds between two readings; default {kind.interval_s:g}"
    return Annotated[float, Meta(ge=1, le=86_400 * 31, description=text)]


def _expected(kind: Kind) -> list[tuple[str, Any]]:
    """What may be known of all devices of a kind at once."""
    found = [("interval_s", _interval(kind))]
    if kind.energy or kind.register:
        found.append(("power_max_kw", PowerKw))
    if kind.register:
        found.append(("register_max_kwh", RegisterMax))
    return found


def _known(kind: Kind) -> list[tuple[str, Any]]:
    """What may be known of one device."""
    battery = [("battery_kwh", BatteryKwh)] if kind.column(Role.LEVEL) else []
    return [*_expected(kind), *battery, ("label", Label)]


@cache
def defaults_type(kind: Kind) -> type[Struct]:
    """What is expected of every device of a kind."""
    doc = f"What is expected of every {kind} of which nothing else is known."
    return _body(f"{title(kind)}Defaults", _expected(kind), doc)


@cache
def body_type(kind: Kind) -> type[Struct]:
    """What somebody says of a device."""
    return _body(f"{title(kind)}Body", _known(kind), f"What a {kind} is. Null: not known, then the default holds.")


def _body(name: str, fields: list[tuple[str, Any]], doc: str) -> type[Struct]:
    given = [(name, known | None, None) for name, known in fields]
    return msgspec.defstruct(
        name, given, namespace={"__doc__": doc}, frozen=True, forbid_unknown_fields=True, rename="camel"
    )


@cache
def answer_type(kind: Kind) -> type[Answer]:
    """What is known of a device; its attributes are those of a DeviceSetting, and the ID first."""
    plain = [(name, str | None if name == "label" else float | None) for name, _ in _known(kind)]
    fields = [(kind.id_column, str), *plain, ("updated_at", datetime | None)]
    names = {name: camel_case(name) for name, _ in fields}
    doc = f"What is known of a {kind}, beside what it sends."
    return msgspec.defstruct(  # type: ignore[return-value]
        title(kind),
        fields,
        bases=(Answer,),
        namespace={"__doc__": doc},
        frozen=True,
        rename={**names, kind.id_column: kind.id_name},
    )
