"""key: what lets a tenant's devices and people in."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import errors, print_json, print_line, print_table, say
from router.cli.target import DataOption, JsonOption
from router.wire.parameters import read_device
from router.wire.problems import ProblemError
from shards.catalog import keys
from shards.catalog.database import Catalog
from shards.catalog.keys import KeyRecord, Right, Wanted
from shards.catalog.tenants import DEFAULT_NAME
from shards.clock import deadline_in
from shards.errors import InvalidArgument
from shards.operations import tenants as operation

TIMEOUT_S: Final = 10.0
key_app = typer.Typer(help="Keys: what lets devices and people in.", no_args_is_help=True)


def as_json(key: KeyRecord) -> dict[str, Any]:
    """A key as one JSON object; nothing of it lets anybody in."""
    return {
        "id": key.key_id,
        "tenant": key.tenant,
        "scopes": list(key.scopes),
        "prefix": key.prefix,
        "rate": key.rate,
        "label": key.label,
        "state": key.state,
        "created": key.created_at.isoformat(),
        "expires": None if key.expires_at is None else key.expires_at.isoformat(),
        "revoked": None if key.revoked_at is None else key.revoked_at.isoformat(),
    }


@key_app.command("create")
def create(
    scope: Annotated[list[Right], typer.Option(help="What it may do. Repeatable.")],
    tenant: Annotated[str, typer.Option(help="Whose key it is.")] = DEFAULT_NAME,
    prefix: Annotated[str | None, typer.Option(help="Only for devices whose IDs begin so.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Readings a second, for each router [no limit].")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0.0001, max=36_500, help="Days until it expires [never].")] = None,
    label: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Make a key and show it: this once, and never again. From the first one on, every request needs one."""
    if prefix is not None:
        try:
            read_device(prefix, "--prefix")
        except ProblemError as error:
            raise InvalidArgument(error.detail) from None
    expires = None if days is None else datetime.now(UTC) + timedelta(days=days)
    wanted = Wanted(tuple(scope), prefix, rate, expires, label)

    async def work(catalog: Catalog) -> tuple[KeyRecord, str]:
        return await operation.create_key(catalog, tenant, wanted)

    made, text = with_catalog(data, work)
    if json:
        print_json({"id": made.key_id, "key": text})
        return
    print_line(text)
    text = f"Shown this once, and never again. It may {', '.join(made.scopes)} as tenant {made.tenant}:"
    errors.print(text, markup=False, soft_wrap=True)
    errors.print("  curl -H 'Authorization: Bearer vr_...' ...", markup=False, soft_wrap=True)


@key_app.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only those of one tenant.")] = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """All keys, revoked and expired ones too; their texts are stored nowhere."""

    async def work(catalog: Catalog) -> list[KeyRecord]:
        if tenant is not None:
            await operation.find_tenant(catalog, tenant)
        return await keys.listed(catalog, tenant, deadline_in(TIMEOUT_S))

    found = with_catalog(data, work)
    if json:
        print_json({"keys": [as_json(key) for key in found]})
        return
    rows = [
        (key.key_id, key.tenant, " ".join(key.scopes), key.prefix or "-", _limits(key), key.state, key.label or "-")
        for key in found
    ]
    print_table(("id", "tenant", "scopes", "prefix", "limits", "state", "label"), rows)


def _limits(key: KeyRecord) -> str:
    found = [] if key.rate is None else [f"{key.rate:g}/s"]
    found += [] if key.expires_at is None else [f"until {key.expires_at:%Y-%m-%d}"]
    return " ".join(found) or "-"


@key_app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="What `key list` shows: the part after vr_.")],
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Revoke a key for good; routers refuse it within VOLTROUTE_MAP_POLL_S. After the last one, nobody enters."""
    done = with_catalog(data, lambda catalog: operation.revoke_key(catalog, key_id))
    if json:
        print_json({"id": key_id, "revoked": True, "before": not done})
    else:
        say(f"key {key_id} is revoked" if done else f"key {key_id} was revoked before")
