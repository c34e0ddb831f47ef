"""Entry point. Exit codes: 0 ok, 1 failed, 2 usage, 3 refused."""

import sys
from importlib import metadata
from typing import Annotated

import typer

from router.cli import (
    archive,
    backup,
    cluster,
    correct,
    demo,
    doctor,
    export,
    key,
    kind,
    lifecycle,
    load,
    post,
    rebalance,
    schema,
    shard,
    simulate,
    status,
    tenant,
)
from router.cli.show.output import errors, print_line
from shards.errors import ClusterError, InvalidArgument, Refused, ShardError
from shards.postgres.dsn import redact_text

app = typer.Typer(
    help="Sharded ingestion router for device telemetry on PostgreSQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print_line(f"voltroute {metadata.version('voltroute')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Sharded ingestion router for device telemetry on PostgreSQL."""


app.command()(cluster.up)
app.command()(cluster.down)
app.command()(demo.demo)
app.command()(cluster.init)
app.command("serve")(cluster.serve_command)
app.command()(status.status)
app.add_typer(schema.migrate_app, name="migrate")
app.add_typer(shard.shard_app, name="shard")
app.add_typer(rebalance.rebalance_app, name="rebalance")
app.add_typer(lifecycle.lifecycle_app, name="lifecycle")
app.add_typer(archive.archive_app, name="archive")
app.add_typer(tenant.tenant_app, name="tenant")
app.add_typer(key.key_app, name="key")
app.add_typer(kind.kind_app, name="kind")
app.add_typer(kind.field_app, name="field")
app.add_typer(schema.map_app, name="map")
app.add_typer(schema.config_app, name="config")
app.command()(load.load)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(post.post)
app.command()(export.export)
app.command()(post.presets)
app.command()(simulate.simulate)
app.command()(correct.correct)
app.command()(doctor.doctor)
app.command()(rebalance.check)
app.command("runner")(rebalance.runner_command)


def _end(code: int, message: object) -> None:
    errors.print("[red]error:[/red]", end=" ")
    errors.print(redact_text(str(message)), markup=False, soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except Refused as error:
        _end(3, error)
    except (ClusterError, ShardError) as error:
        _end(1, error)
    except InvalidArgument as error:
        _end(2, error)
    except OSError as error:
        _end(1, f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
