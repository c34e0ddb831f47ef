"""Metrics of several workers as one text, and what each worker gets of the limits."""

import asyncio
import socket
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from router.server import listen
from router.settings import Settings
from router.siblings import Siblings, merge
from router.supervisor import reserve, share
from shards.errors import InvalidArgument, MachineError


def exposition(number: int) -> str:
    registry = CollectorRegistry()
    counter = Counter("readings", "Readings # HELP of\nsome lines", ("kind",), registry=registry)
    counter.labels('a"b\n# HELP x {').inc(number)
    Gauge("open", "Open", registry=registry).set(-number)
    Histogram("seconds", "Seconds", buckets=(1, 2), registry=registry).observe(number)
    return generate_latest(registry).decode()


def test_every_series_of_every_worker_is_there_with_its_worker() -> None:
    """Read back by Prometheus' own parser."""
    texts = {1: exposition(1), 3: exposition(3)}
    merged = list(text_string_to_metric_families("\n".join(merge(texts)) + "\n"))
    assert [family.name for family in merged] == ["readings", "open", "seconds"]
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in merged for sample in family.samples
    }
    wanted = {
        (sample.name, *sorted({**sample.labels, "worker": str(worker)}.items())): sample.value
        for worker, text in texts.items()
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert wanted == found


def test_a_worker_is_told_who_it_is() -> None:
    told = Siblings(Path("/tmp/a,b"), 2, 4, 7)
    assert Siblings.of(str(told)) == told


def test_limits_are_shared_out() -> None:
    settings = Settings(workers=4, pool_min=5, pool_max=20, connections_max=4_096)
    assert share(settings) == {
        "pool_min": 1,
        "pool_max": 5,
        "connections_max": 1_024,
        "queue_readings_max": 20_000,  # a request that is allowed finds room
        "bodies_bytes_max": 64 * 2**20,
    }


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"pool_max": 3}, "4 workers share VOLTROUTE_POOL_MAX=3, and each needs 1: raise it, or take fewer workers"),
        ({"connections_max": 63}, "4 workers share VOLTROUTE_CONNECTIONS_MAX=63, and each needs 16"),
    ],
)
def test_more_workers_than_there_is_for_them(limits: dict[str, int], told: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        share(Settings(workers=4, **limits))  # type: ignore[arg-type]
    assert str(refused.value).startswith(told)


async def test_half_an_answer_is_none(tmp_path: Path) -> None:
    """A sibling that ends while it tells: half of a number would be another number."""

    async def cut(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(exposition(2).encode()[:-10])
        writer.close()

    one, third = Siblings(tmp_path, 1, 3, 0), Siblings(tmp_path, 3, 3, 5)
    server = await asyncio.start_unix_server(cut, tmp_path / "2.sock")
    async with server, third.told(lambda: exposition(3).encode()):
        text = (await one.merged(exposition(1).encode())).decode()
    found = {
        (sample.name, sample.labels["worker"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert [found["voltroute_worker_up", each] for each in "123"] == [1, 0, 1]
    assert ("open", "2") not in found
    assert (found["open", "1"], found["open", "3"]) == (-1, -3)
    assert found["voltroute_worker_restarts_total", "3"] == 5


def test_a_port_is_had_while_connections_of_before_are_not_forgotten() -> None:
    before = listen("127.0.0.1", 0)
    port = before.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = before.accept()
        accepted.close()  # the server's side first: it is the one that waits
        client.recv(1)
    before.close()
    reserve("127.0.0.1", port).close()
    other = listen("127.0.0.1", 0)
    with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1:{other.getsockname()[1]}"):
        reserve("127.0.0.1", other.getsockname()[1])
    other.close()
