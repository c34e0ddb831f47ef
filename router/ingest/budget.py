"""Memory for request bodies: how much all that are being worked on hold together."""

from dataclasses import dataclass


@dataclass
class BodyBudget:
    """Bytes held by bodies now, and how many they may hold."""

    bytes_max: int
    held: int = 0

    @property
    def is_spent(self) -> bool:
        """More is held than may be."""
        return self.held > self.bytes_max
