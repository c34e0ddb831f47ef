"""Metrics of several workers as one text, and what each worker gets of the limits."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from router.settings import Settings
from router.siblings import Siblings, merge
from router.supervisor import share
from shards.errors import InvalidArgument


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
