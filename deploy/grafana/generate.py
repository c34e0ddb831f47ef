"""Makes dashboards/voltroute.json: `python deploy/grafana/generate.py`. A test holds the file to this."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, Row
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef

FILE: Final = Path(__file__).parent / "dashboards" / "voltroute.json"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH: Final = 8
HEIGHT: Final = 7


@dataclass(frozen=True)
class Chart:
    """A panel: its title, the unit of its axis, and (expression, legend) of its lines."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    is_signed: bool = False


def _quantile(share: float, metric: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


CHARTS: Final[dict[str, tuple[Chart, ...]]] = {
    "Ingestion": (
        Chart(
            "Readings by outcome",
            "cps",
            (
                (
                    "sum by (outcome) (rate(voltroute_ingest_readings_total[$__rate_interval]))",
                    "{{outcome}}",
                ),
            ),
        ),
        Chart(
            "Time of an ingest request",
            "s",
            (
                (_quantile(0.5, "telemetry_ingest_duration_seconds"), "p50"),
                (_quantile(0.95, "telemetry_ingest_duration_seconds"), "p95"),
                (_quantile(0.99, "telemetry_ingest_duration_seconds"), "p99"),
            ),
        ),
        Chart(
            "Requests by status",
            "reqps",
            (("sum by (status) (rate(voltroute_request_duration_seconds_count[$__rate_interval]))", "{{status}}"),),
        ),
        Chart(
            "Readings by tenant, stored and refused",
            "cps",
            (
                (
                    "sum by (tenant, outcome) (rate(voltroute_key_readings_total[$__rate_interval]))",
                    "{{tenant}} {{outcome}}",
                ),
            ),
        ),
        Chart("Waiting readings", "short", (("sum by (shard) (voltroute_queue_readings)", "{{shard}}"),)),
        Chart("Fleet efficiency, the last hour", "percentunit", (("max(vehicle_efficiency_ratio)", "DC / AC"),)),
    ),
    "Shards": (
        Chart("Takes readings", "short", (('min by (shard) (voltroute_shard_up{login="writer"})', "{{shard}}"),)),
        Chart(
            "Time of a transaction, p95",
            "s",
            ((_quantile(0.95, "voltroute_batch_duration_seconds", "shard"), "{{shard}}"),),
        ),
        Chart(
            "Readings in a transaction, mean",
            "short",
            (
                (
                    (
                        "sum by (shard) (rate(voltroute_batch_readings_sum[$__rate_interval])) / "
                        "sum by (shard) (rate(voltroute_batch_readings_count[$__rate_interval]))"
                    ),
                    "{{shard}}",
                ),
            ),
        ),
        Chart(
            "Connections in use, of those allowed",
            "percentunit",
            (
                (
                    (
                        "max by (shard) (pg_stat_database_numbackends) / on (shard) "
                        "max by (shard) (pg_settings_max_connections)"
                    ),
                    "{{shard}}",
                ),
            ),
        ),
        Chart(
            "Blocks found in memory",
            "percentunit",
            (
                (
                    (
                        "max by (shard) (rate(pg_stat_database_blks_hit[$__rate_interval])) / "
                        "(max by (shard) (rate(pg_stat_database_blks_hit[$__rate_interval])) + "
                        "max by (shard) (rate(pg_stat_database_blks_read[$__rate_interval])))"
                    ),
                    "{{shard}}",
                ),
            ),
        ),
        Chart(
            "Bytes",
            "bytes",
            (
                ("max by (shard) (pg_database_size_bytes)", "{{shard}} data"),
                ("max by (shard) (pg_wal_size_bytes)", "{{shard}} WAL"),
            ),
        ),
        Chart(
            "Until partitions end",
            "s",
            (("min by (shard) (voltroute_shard_partition_runway_seconds)", "{{shard}}"),),
        ),
        Chart(
            "Steps of the lifecycle a minute",
            "short",
            (("sum by (shard, step) (rate(voltroute_lifecycle_steps_total[5m])) * 60", "{{shard}} {{step}}"),),
        ),
        Chart(
            "Packed readings",
            "short",
            (("max by (shard) (voltroute_shard_packed_readings)", "{{shard}}"),),
        ),
        Chart(
            "Dead rows",
            "short",
            (("sum by (shard, relname) (pg_stat_user_tables_n_dead_tup)", "{{shard}} {{relname}}"),),
        ),
        Chart(
            "Longest transaction",
            "s",
            (('max by (shard) (pg_stat_activity_max_tx_duration{state!="idle"})', "{{shard}}"),),
        ),
        Chart(
            "Clock beside the routers'",
            "s",
            (("max by (shard) (voltroute_shard_clock_skew_seconds)", "{{shard}}"),),
            is_signed=True,
        ),
    ),
    "Moves and routers": (
        Chart("Buckets", "short", (("max by (shard) (voltroute_shard_buckets)", "{{shard}}"),)),
        Chart("Open moves", "short", (("sum by (phase) (voltroute_moves_open)", "{{phase}}"),)),
        Chart(
            "Copied",
            "cps",
            (("sum(rate(voltroute_move_readings_copied_total[$__rate_interval]))", "readings"),),
        ),
        Chart(
            "CPU of routers",
            "percentunit",
            (("rate(process_cpu_seconds_total[$__rate_interval])", "{{instance}}"),),
        ),
        Chart("Memory of routers", "bytes", (("process_resident_memory_bytes", "{{instance}}"),)),
        Chart(
            "Refused for who sent them",
            "reqps",
            (("sum by (reason) (rate(voltroute_requests_refused_total[$__rate_interval]))", "{{reason}}"),),
        ),
    ),
}


def expressions() -> list[str]:
    """Every query of the dashboard."""
    return [expression for charts in CHARTS.values() for chart in charts for expression, _ in chart.lines]


def _panel(chart: Chart) -> Panel:
    panel = (
        Panel()
        .title(chart.title)
        .datasource(SOURCE)
        .unit(chart.unit)
        .span(WIDTH)
        .height(HEIGHT)
        .fill_opacity(5)
        .legend(
            VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
        )
    )
    if not chart.is_signed:
        panel = panel.min(0)
    for expression, legend in chart.lines:
        panel = panel.with_target(Dataquery().expr(expression).legend_format(legend).datasource(SOURCE))
    return panel


def dashboard() -> str:
    """The dashboard as JSON."""
    made = (
        Dashboard("voltroute")
        .uid("voltroute")
        .tags(["voltroute"])
        .refresh("15s")
        .time("now-1h", "now")
        .timezone("browser")
        .editable()
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    number = 0
    for title, charts in CHARTS.items():
        number += 1
        made = made.with_row(Row(title).id(number))
        for chart in charts:
            number += 1
            made = made.with_panel(_panel(chart).id(number))
    return json.dumps(json.loads(JSONEncoder(sort_keys=True, indent=1).encode(made.build())), indent=1, sort_keys=True)


if __name__ == "__main__":
    FILE.write_text(dashboard() + "\n")
    sys.stdout.write(f"{FILE}\n")
