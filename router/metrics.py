"""Prometheus metrics of the router. No device ID is ever a label."""

import platform
from collections import Counter as Sums
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Final, TypeAlias

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call]  # else a series more for each counter and histogram, which nobody asks for

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)

READINGS: Final = Counter(
    "voltroute_ingest_readings_total",
    "Readings by kind and outcome (accepted, duplicate, conflict, rejected, unavailable, overloaded)",
    ("kind", "outcome"),
)
SHED: Final = Counter(
    "voltroute_ingest_shed_total",
    "Requests refused before their body was read, because readings wait too long, by the size of their body",
    ("size",),
)
IGNORED: Final = Counter(
    "voltroute_ingest_ignored_values_total",
    "Values of fields that nobody declared, left out because VOLTROUTE_UNKNOWN_FIELDS says so",
    ("kind",),
)
KEY_READINGS: Final = Counter(
    "voltroute_key_readings_total",
    "Readings by key: stored (accepted or known), and refused or failed",
    ("tenant", "key", "outcome"),
)
REFUSED: Final = Counter(
    "voltroute_requests_refused_total",
    "Requests refused for who sent them (unauthorized, forbidden, limited)",
    ("reason",),
)
LOG_LINES_LEFT_OUT: Final = Counter(
    "voltroute_log_lines_left_out_total", "Lines of the log that nobody read in time, or that could not be shown"
)
REQUEST_SECONDS: Final = Histogram(
    "voltroute_request_duration_seconds",
    "From the first byte of a request to the end of its answer",
    ("route", "method", "status"),
    buckets=_SECONDS,
)
BATCH_READINGS: Final = Histogram(
    "voltroute_batch_readings", "Readings in one transaction", ("shard", "kind"), buckets=_SIZES
)
BATCH_SECONDS: Final = Histogram(
    "voltroute_batch_duration_seconds",
    "One transaction, from asking for a connection to COMMIT",
    ("shard", "kind", "outcome"),
    buckets=_SECONDS,
)
FANOUT_SECONDS: Final = Histogram(
    "voltroute_fanout_duration_seconds", "One shard's answer to a cross-shard read", ("shard",), buckets=_SECONDS
)
STALE_MAPS: Final = Counter("voltroute_stale_maps_total", "Times a shard refused this router's map", ("shard",))
READS: Final = Counter(
    "voltroute_reads_total",
    "A shard's answers to reads, by the replica that gave them; empty: the primary",
    ("shard", "replica"),
)
STATUS_READS: Final = Counter(
    "voltroute_status_cache_reads_total",
    "Statuses asked for where Redis keeps them (hit, miss; bypass: it may not be asked)",
    ("outcome",),
)
STATUS_CACHE_FAILURES: Final = Counter(
    "voltroute_status_cache_failures_total", "Batches whose statuses could not be deleted from Redis at once"
)
MAP_REFRESH_FAILURES: Final = Counter("voltroute_map_refresh_failures_total", "Failed reads of the catalog's map")
MOVE_PHASES: Final = Counter(
    "voltroute_move_phases_total", "Phases that this router's runner took moves to", ("phase",)
)
MOVE_FAILURES: Final = Counter("voltroute_move_failures_total", "Attempts at a phase of a move that failed", ("phase",))
MOVE_ROWS: Final = Counter("voltroute_move_readings_copied_total", "Readings that this router's runner copied")
MOVE_BYTES: Final = Counter("voltroute_move_bytes_copied_total", "Bytes that this router's runner copied")
MOVE_LAG_S: Final = Gauge("voltroute_move_lag_seconds", "How far the last catchup pass was behind its source")
MOVE_PAUSE_S: Final = Histogram(
    "voltroute_move_write_pause_seconds", "How long a bucket's writers waited at its fence", buckets=_SECONDS
)
PARTITIONS_MADE: Final = Counter("voltroute_partitions_made_total", "Partitions made ahead of time", ("shard",))
PARTITIONS_FAILED: Final = Gauge(
    "voltroute_buckets_without_partitions", "Buckets for which partitions could not be made ahead of time", ("shard",)
)
LIFECYCLE_STEPS: Final = Counter(
    "voltroute_lifecycle_steps_total", "Steps that took history through its tiers", ("shard", "step")
)
LIFECYCLE_SECONDS: Final = Counter("voltroute_lifecycle_seconds_total", "Seconds spent in them", ("shard", "step"))
LIFECYCLE_FAILED: Final = Gauge(
    "voltroute_lifecycle_failures", "Kinds of buckets whose step failed in the last round", ("shard",)
)
ROLLUPS_FAILED: Final = Gauge(
    "voltroute_rollup_failures", "Kinds of buckets whose rollups could not be brought up to date", ("shard",)
)
ARCHIVE_FAILED: Final = Gauge(
    "voltroute_archive_failures", "Months that could not leave their shard in the last round", ("shard",)
)
SHARD_ERRORS: Final = Counter(
    "voltroute_shard_errors_total", "Times a database became unavailable, by cause", ("shard", "cause")
)

BUILD_INFO: Final = Gauge("voltroute_build_info", "1, with the versions that run", ("version", "python"))
VERSION: Final = metadata.version("voltroute")
BUILD_INFO.labels(VERSION, platform.python_version()).set(1)

# The names that the seed gives, made of what is counted anyway: they cost nothing but at a scrape.
DERIVED: Final = {
    "telemetry_ingested_total": ("type", "status"),
    "telemetry_ingest_duration_seconds": (),
    "voltroute_worker_up": ("worker",),  # these where there are several: see siblings
    "voltroute_worker_restarts_total": ("worker",),
}
_SUCCESS: Final = frozenset({"accepted", "duplicate"})
_SEED_BUCKETS: Final = ("0.01", "0.05", "0.1", "0.5", "1.0", "2.0", "5.0", "+Inf")


class _DerivedCollector(Collector):
    """Readings by kind and success; a histogram of ingest requests with fewer buckets than our own."""

    def collect(self) -> Iterable[Metric]:
        """Both metrics as they are now."""
        counted = CounterMetricFamily(
            "telemetry_ingested", "Readings that were stored, or known already, and others", labels=("type", "status")
        )
        readings: Sums[tuple[str, str]] = Sums()
        for sample in next(iter(READINGS.collect())).samples:
            status = "success" if sample.labels["outcome"] in _SUCCESS else "error"
            readings[sample.labels["kind"], status] += int(sample.value)
        for labels, value in readings.items():
            counted.add_metric(labels, value)
        yield counted
        buckets: Sums[str] = Sums()
        total = 0.0
        for sample in next(iter(REQUEST_SECONDS.collect())).samples:
            if sample.labels["method"] == "POST" and sample.labels["route"].startswith("/v1/ingest"):
                if sample.name.endswith("_bucket"):
                    buckets[sample.labels["le"]] += int(sample.value)
                elif sample.name.endswith("_sum"):
                    total += sample.value
        yield HistogramMetricFamily(
            "telemetry_ingest_duration_seconds",
            "From the first byte of an ingest request to the end of its answer",
            buckets=[(bound, buckets[bound]) for bound in _SEED_BUCKETS],
            sum_value=total,
        )


REGISTRY.register(_DerivedCollector())

# (metric name, help, label names, samples of (label values, value))
Gauges: TypeAlias = Iterable[tuple[str, str, tuple[str, ...], Iterable[tuple[tuple[str, ...], float]]]]


class _GaugeCollector(Collector):
    """Gauges that are read when Prometheus asks, and only then."""

    def __init__(self, read: Callable[[], Gauges]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """The gauges as they are now."""
        for name, text, labels, samples in self._read():
            family = GaugeMetricFamily(name, text, labels=labels)
            for values, value in samples:
                family.add_metric(values, value)
            yield family


def exposition(read: Callable[[], Gauges]) -> bytes:
    """All metrics in Prometheus' text format: the process' own, and the gauges of one router."""
    gauges = CollectorRegistry()
    gauges.register(_GaugeCollector(read))
    return generate_latest(REGISTRY) + generate_latest(gauges)
