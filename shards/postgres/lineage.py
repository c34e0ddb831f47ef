"""Which server is believed to be a database's primary: of one system, and of the newest timeline that was seen. Pure.

Every promotion begins a timeline. A server on an older one was a primary once, and whoever writes to it loses that.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

_ACCEPT: Final = "when it was restored or upgraded, say so with `voltroute shard accept`"


class Role(Enum):
    """What a server must be: the newest primary, a replica of it, or whatever answers, which is not asked."""

    PRIMARY = "primary"
    REPLICA = "replica"
    ANY = "any"


@dataclass(frozen=True)
class Standing:
    """What a server says of itself: its system identifier, and its timeline; None while it is a replica."""

    system: int
    timeline: int | None


@dataclass
class Lineage:
    """What is known of one database's primary; shared by whoever connects to it. Nothing is known of a new one."""

    system: int | None = None
    timeline: int = 0
    _remembered: dict[int, int] = field(default_factory=dict)  # the newest timeline of a system, of an earlier run
    _listeners: list[Callable[[], None]] = field(default_factory=list)

    def refusal(self, standing: Standing, role: Role = Role.PRIMARY) -> str | None:
        """Why a server of the same system does not have this role; None when it has."""
        if role is Role.REPLICA:
            return None if standing.timeline is None else "it is a primary, not a replica"
        if standing.timeline is None:
            return "it is a replica"
        newest = max(self.timeline, self._remembered.get(standing.system, 0))
        if standing.timeline < newest:
            return f"it is an old primary: its timeline is {standing.timeline}, and {newest} was seen"
        return None

    def foreign(self, standing: Standing) -> str | None:
        """Why a server holds no copy of this database; None when it may hold one."""
        if self.system is not None and standing.system != self.system:
            return f"it is another server (system {standing.system}, not {self.system}): {_ACCEPT}"
        return None

    def remember(self, system: int, timeline: int) -> None:
        """An older primary of this system is not to be believed. It may have become another system since."""
        self._remembered[system] = timeline

    def learn(self, system: int | None, timeline: int) -> None:
        """A primary was met, or the catalog tells of one. Who listens hears when it is a newer one than was known."""
        if system is None or (system, timeline) == (self.system, self.timeline):
            return
        if system == self.system and timeline < self.timeline:
            return
        self.system, self.timeline = system, timeline
        for listener in list(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Be told of a newer primary; returns what ends that."""
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:  # who closes twice has ended it
                self._listeners.remove(listener)

        return end

    def is_past(self, timeline: int | None) -> bool:
        """Whether a session that began on this timeline of the primary has been overtaken."""
        return timeline is not None and timeline < self.timeline
