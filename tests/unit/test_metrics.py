"""The seed's metrics, made of ours."""

from router.metrics import READINGS, REQUEST_SECONDS, exposition


def values(text: str) -> dict[str, float]:
    """Series -> value, of the seed's names alone."""
    lines = [line for line in text.splitlines() if line.startswith("telemetry_")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_the_seeds_names_labels_and_buckets() -> None:
    before = values(exposition(list).decode())
    for outcome, count in (("accepted", 5), ("duplicate", 2), ("conflict", 1), ("unavailable", 3), ("rejected", 1)):
        READINGS.labels("vehicle", outcome).inc(count)
    for route, seconds in (("/v1/ingest", 0.004), ("/v1/ingest/meter", 0.3), ("/v1/meters", 0.3)):
        REQUEST_SECONDS.labels(route, "POST" if "ingest" in route else "GET", "200").observe(seconds)
    text = exposition(list).decode()
    grown = {name: value - before.get(name, 0) for name, value in values(text).items()}
    assert grown['telemetry_ingested_total{status="success",type="vehicle"}'] == 7
    assert grown['telemetry_ingested_total{status="error",type="vehicle"}'] == 5
    buckets = {name.split('"')[1]: value for name, value in grown.items() if "_bucket" in name}
    assert buckets == {"0.01": 1, "0.05": 1, "0.1": 1, "0.5": 2, "1.0": 2, "2.0": 2, "5.0": 2, "+Inf": 2}
    assert grown["telemetry_ingest_duration_seconds_count"] == 2
    assert round(grown["telemetry_ingest_duration_seconds_sum"], 6) == 0.304
    assert "_created" not in text
    assert 'voltroute_build_info{python="' in text
