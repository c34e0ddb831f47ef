"""What becomes of a chunk of readings, and how whoever sent it is told."""

import asyncio
from dataclasses import dataclass
from typing import Protocol


@dataclass(slots=True)
class Committed:
    """The number of a chunk's new readings; of the others the indexes.

    `rejected`: with a code and what there is to say.
    `conflicts`: those whose key is stored with other values; `duplicates`: with the same.
    """

    accepted: int
    duplicates: tuple[int, ...] = ()
    rejected: tuple[tuple[int, str, str], ...] = ()
    conflicts: tuple[int, ...] = ()

    def others(self) -> "dict[int, Committed]":
        """Of readings that are not new, by index: what became of each, told as if it were alone in its chunk."""
        found = dict.fromkeys(self.duplicates, Committed(0, (0,)))
        found |= dict.fromkeys(self.conflicts, Committed(0, conflicts=(0,)))
        return found | {index: Committed(0, rejected=((0, code, why),)) for index, code, why in self.rejected}


class Promise(Protocol):
    """What becomes of a chunk, as an asyncio.Future tells it."""

    def done(self) -> bool:
        """Whether it has ended in any way."""

    def cancelled(self) -> bool:
        """Whether it was withdrawn."""

    def cancel(self) -> bool:
        """Withdraw it unless it has ended."""

    def result(self) -> Committed:
        """What was committed."""

    def exception(self) -> BaseException | None:
        """Why it failed; None when it was committed."""

    def set_result(self, result: Committed, /) -> None:
        """It is committed."""

    def set_exception(self, exception: BaseException, /) -> None:
        """It failed."""


class Part:
    """A future without tasks that wait: it ends by a call. Whoever wants to hear of that overrides `tell`."""

    __slots__ = ("_cancelled", "_error", "_result")

    def __init__(self, result: Committed | None = None, error: BaseException | None = None) -> None:
        self._result = result
        self._error = error
        self._cancelled = False

    def tell(self) -> None:
        """It has ended."""

    def done(self) -> bool:
        return self._result is not None or self._error is not None or self._cancelled

    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> bool:
        if self.done():
            return False
        self._cancelled = True
        self.tell()
        return True

    def result(self) -> Committed:
        if self._result is None:
            raise self._error or asyncio.InvalidStateError
        return self._result

    def exception(self) -> BaseException | None:
        return self._error

    def set_result(self, result: Committed, /) -> None:
        self._result = result
        self.tell()

    def set_exception(self, exception: BaseException, /) -> None:
        self._error = exception
        self.tell()
