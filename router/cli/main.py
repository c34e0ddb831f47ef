"""Entry point. Exit codes: 0 ok, 1 failed, 2 usage, 3 refused."""

import sys

import typer

from router.cli import demo, doctor, inspecting, posting, rebalancing, running, sharding
from router.cli.output import errors
from shards.dsn import redact_text
from shards.errors import ClusterError, InvalidArgument, Refused, ShardError

app = typer.Typer(
    help="Sharded ingestion router for device telemetry on PostgreSQL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(running.up)
app.command()(running.down)
app.command()(demo.demo)
app.command()(running.init)
app.command("serve")(running.serve_command)
app.add_typer(inspecting.migrate_app, name="migrate")
app.add_typer(inspecting.shard_app, name="shard")
app.add_typer(rebalancing.rebalance_app, name="rebalance")
app.add_typer(inspecting.map_app, name="map")
app.add_typer(inspecting.config_app, name="config")
app.command()(posting.post)
app.command()(posting.simulate)
app.command()(doctor.doctor)
inspecting.shard_app.command("add")(sharding.add)
inspecting.shard_app.command("drain")(sharding.drain)
inspecting.shard_app.command("remove")(sharding.remove)
inspecting.shard_app.command("weight")(sharding.weight)
app.command()(rebalancing.check)
app.command("runner")(rebalancing.runner_command)


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
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
