"""The workers behind one port, as one of them sees the others: their metrics, over sockets in a folder of their own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TIMEOUT_S: Final = 1.0  # a sibling that takes longer is told as missing
_BYTES_MAX: Final = 64 * 2**20
_END: Final = b"\n# END\n"


@dataclass(frozen=True)
class Siblings:
    """`number` of `count` workers (1, 2, ...), which was started anew `restarts` times; `folder` is nobody else's."""

    folder: Path
    number: int
    count: int
    restarts: int

    @classmethod
    def of(cls, text: str) -> "Siblings":
        """What `str()` wrote."""
        number, count, restarts, folder = text.split(",", 3)
        return cls(Path(folder), int(number), int(count), int(restarts))

    def __str__(self) -> str:
        return f"{self.number},{self.count},{self.restarts},{self.folder}"

    def _with_restarts(self, text: bytes) -> bytes:
        return text + _RESTARTS.format(self.restarts).encode()

    def _socket(self, number: int) -> Path:
        return self.folder / f"{number}.sock"

    @asynccontextmanager
    async def told(self, exposition: Callable[[], bytes]) -> AsyncIterator[None]:
        """Inside the block, siblings that ask get `exposition()`, in Prometheus' text format."""

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(TIMEOUT_S):
                    writer.write(self._with_restarts(exposition()) + _END)
                    await writer.drain()
            writer.close()

        own = self._socket(self.number)
        own.unlink(missing_ok=True)  # of one that was killed
        server = await asyncio.start_unix_server(answer, own)
        try:
            yield
        finally:
            server.close()
            own.unlink(missing_ok=True)

    async def hangs(self, timeout_s: float) -> bool:
        """Whether this worker says nothing in that time to whoever asks. One that cannot be asked may be well."""
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._socket(self.number))
                try:
                    await reader.read(1)
                finally:
                    writer.close()
        except TimeoutError:
            return True
        except OSError:
            pass
        return False

    async def merged(self, own: bytes) -> bytes:
        """The metrics of all workers, each series with its `worker`; one that does not answer is said to be down."""
        others = [number for number in range(1, self.count + 1) if number != self.number]
        answers = await asyncio.gather(*map(self._asked, others))
        texts = dict(zip(others, answers, strict=True)) | {self.number: self._with_restarts(own)}
        up = (f'voltroute_worker_up{{worker="{number}"}} {int(bool(text))}' for number, text in sorted(texts.items()))
        told = {number: text.decode() for number, text in sorted(texts.items()) if text}
        # In a thread: many workers of many shards have megabytes to say, and devices are waiting.
        lines = await asyncio.to_thread(merge, told)
        return "\n".join([*_UP, *up, *lines]).encode() + b"\n"

    async def _asked(self, number: int) -> bytes:
        """A sibling's metrics; empty when it does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._socket(number), limit=_BYTES_MAX)
                try:
                    return (await reader.readuntil(_END)).removesuffix(_END)
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return b""  # also when it was cut short: half of a number is another number


_UP: Final = (
    "# HELP voltroute_worker_up Whether a worker of this router answers the one that was asked",
    "# TYPE voltroute_worker_up gauge",
)
_RESTARTS: Final = """\
# HELP voltroute_worker_restarts_total Times that a worker ended by itself and was started again
# TYPE voltroute_worker_restarts_total counter
voltroute_worker_restarts_total {}
"""


def merge(texts: Mapping[int, str]) -> list[str]:
    """Lines in Prometheus' text format: every family of the workers' once, every series with its worker."""
    families: dict[str, list[str]] = {}
    for worker, text in texts.items():
        # A line of its own: what looks like one within a label has its line breaks written as two letters.
        for block in ("\n" + text).split("\n# HELP ")[1:]:
            head, kind, *series = block.split("\n")
            lines = families.setdefault(head.partition(" ")[0], [f"# HELP {head}", kind])
            lines += [_labelled(line, worker) for line in series if line]
    return [line for lines in families.values() for line in lines]


def _labelled(series: str, worker: int) -> str:
    name, _, value = series.partition(" ")
    if "{" in name:
        name, _, rest = series.partition("{")
        return f'{name}{{worker="{worker}",{rest}'
    return f'{name}{{worker="{worker}"}} {value}'
