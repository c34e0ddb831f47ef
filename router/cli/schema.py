"""migrate, map, config: the commands that bring a schema up to date, and show the map and the settings."""

import asyncio

import typer

from router.cli.show.output import errors, print_json, print_table, ranges
from router.cli.target import DataOption, JsonOption, find_catalog, load_settings
from router.settings import PREFIX, Settings
from shards.catalog.database import Catalog
from shards.catalog.shard_map import ShardMap
from shards.clock import deadline_in
from shards.errors import NoCluster
from shards.operations import schema
from shards.postgres import migrate as migrations
from shards.shard import ShardRecord

READ_TIMEOUT_S = 10.0

migrate_app = typer.Typer(help="Schema migrations of the catalog and all shards.", no_args_is_help=True)
map_app = typer.Typer(help="The shard map.", no_args_is_help=True)
config_app = typer.Typer(help="Settings.", no_args_is_help=True)


async def read_cluster(catalog_dsn: str) -> tuple[list[ShardRecord], ShardMap | None]:
    """Registered shards and the map."""
    catalog = Catalog(catalog_dsn)
    try:
        deadline = deadline_in(READ_TIMEOUT_S)
        await catalog.info(deadline)
        return await catalog.shards(deadline), await catalog.shard_map(deadline)
    finally:
        await catalog.close()


def _print_reports(reports: list[migrations.Report], *, json: bool) -> None:
    if json:
        print_json(
            [
                {
                    "database": r.database,
                    "version": r.version,
                    "applied": list(r.applied),
                    "pending": list(r.pending),
                    "error": r.error,
                }
                for r in reports
            ]
        )
    else:
        rows = [(r.database, r.version, " ".join(r.applied) or "-", " ".join(r.pending) or "-") for r in reports]
        print_table(("database", "version", "applied now", "pending"), rows)
        for report in reports:
            if report.error:
                errors.print(f"[red]{report.database}[/red]: {report.error}")
    if any(report.error for report in reports):
        raise typer.Exit(1)


@migrate_app.command("up")
def migrate_up(data: DataOption = None, json: JsonOption = False) -> None:
    """Apply pending migrations, on all databases in parallel."""
    dsn = find_catalog(data, load_settings())

    _print_reports(asyncio.run(schema.bring_up(dsn)), json=json)


@migrate_app.command("retire-reader")
def retire_reader(data: DataOption = None, json: JsonOption = False) -> None:
    """After an upgrade to tenants: take its rights from the login of routers before, of which none may be left."""
    done = asyncio.run(schema.retire_old_reader(find_catalog(data, load_settings())))
    if json:
        print_json({"retired": done})
    else:
        errors.print(f"retired on {', '.join(done)}" if done else "there is none left", soft_wrap=True)


@migrate_app.command("status")
def migrate_status(data: DataOption = None, json: JsonOption = False) -> None:
    """Version of each database, and what is pending."""
    dsn = find_catalog(data, load_settings())

    _print_reports(asyncio.run(schema.status(dsn)), json=json)


@map_app.command("show")
def map_show(data: DataOption = None, json: JsonOption = False) -> None:
    """Epoch, and the owner of every bucket."""
    _, shard_map = asyncio.run(read_cluster(find_catalog(data, load_settings())))
    if shard_map is None:
        message = "the catalog has no shard map: `voltroute init` was not finished"
        raise NoCluster(message)
    if json:
        owners = {str(bucket): owner for bucket, owner in enumerate(shard_map.owners)}
        print_json({"epoch": shard_map.epoch, "bucket_count": shard_map.bucket_count, "owners": owners})
        return
    errors.print(f"epoch {shard_map.epoch}, {shard_map.bucket_count} buckets")
    rows = [(name, len(buckets), ranges(buckets)) for name, buckets in sorted(shard_map.by_shard.items())]
    print_table(("shard", "buckets", "which"), rows)


@config_app.command("show")
def config_show(json: JsonOption = False) -> None:
    """Every setting, its value and where it came from. Secrets are hidden."""
    settings = load_settings()
    rows = [
        {
            "name": PREFIX + name.upper(),
            "value": settings.shown(name),
            "source": "environment" if name in settings.model_fields_set else "default",
            "meaning": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]
    if json:
        print_json(rows)
    else:
        print_table(("setting", "value", "source", "meaning"), [tuple(row.values()) for row in rows])
