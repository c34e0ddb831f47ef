"""What is expected of devices: how often they report, their largest power, where their registers begin again."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

INTERVAL_S: Final = 60.0  # a device reports once a minute, unless something else is said of it


@dataclass(frozen=True)
class Rating:
    """None: not known. `register_max_kwh`: the count at which a register begins again at 0."""

    interval_s: float | None = None
    power_max_kw: float | None = None
    register_max_kwh: float | None = None

    def over(self, default: "Rating") -> "Rating":
        """This one, with what it does not know taken from `default`."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return replace(default, **known)


_DEFAULT: Final = Rating(INTERVAL_S)


@dataclass(frozen=True)
class Ratings:
    """The ratings of one kind of device: of all, and of those of which something else is known, by ID."""

    default: Rating = _DEFAULT
    devices: Mapping[str, Rating] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Nothing tells one device from another, or an implausible reading from a plausible one."""
        return not self.devices and self.default.power_max_kw is None

    def of(self, device_id: str) -> Rating:
        """What is expected of one device."""
        return self.devices.get(device_id, Rating()).over(self.default)

    def interval_s(self, device_id: str | None = None) -> float:
        """Seconds between two readings."""
        rating = self.default if device_id is None else self.of(device_id)
        return rating.interval_s or INTERVAL_S

    def as_json(self) -> str:
        """For SQL: an object with a rating's fields, and with `devices`, a list of such objects, each with `device`."""
        devices = [{"device": device, **vars(rating)} for device, rating in self.devices.items()]
        return msgspec.json.encode({**vars(self.default.over(_DEFAULT)), "devices": devices}).decode()
