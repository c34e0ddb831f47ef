"""Whether a batch may hold readings that are stored already: which of two statements is worth trying first."""

from typing import Final

_WARY_BATCHES: Final = 256


class Repeats:
    """Of one kind on one shard, as one router sees it. Only the cost of a batch depends on it, never what is stored.

    A batch that was wrongly taken for new is written twice, so whoever met a repeat expects others for a while: at most
    one batch in 256 is done in vain, whatever devices send.
    """

    def __init__(self) -> None:
        self._wary = 0  # batches to come

    @property
    def expected(self) -> bool:
        """Whether the next batch is to be written so that repeats do not hurt."""
        return self._wary > 0

    def met(self) -> None:
        """A batch held one."""
        self._wary = _WARY_BATCHES

    def missed(self) -> None:
        """A batch that might have held some held none."""
        self._wary = max(0, self._wary - 1)
