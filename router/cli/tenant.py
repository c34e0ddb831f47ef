"""tenant: whose devices and readings are told apart."""

from typing import Annotated, Any, Final

import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import print_json, print_table, say
from router.cli.target import DataOption, JsonOption
from shards.catalog import keys, tenants
from shards.catalog.database import Catalog
from shards.catalog.keys import KeyRecord
from shards.catalog.tenants import Tenant
from shards.clock import deadline_in
from shards.operations import tenants as operation

TIMEOUT_S: Final = 10.0
tenant_app = typer.Typer(help="Tenants: whose devices and readings are told apart.", no_args_is_help=True)
_Name = Annotated[str, typer.Argument(help="Its name.")]
_Rate = Annotated[
    float | None, typer.Option(min=0.001, help="Readings a second of all its keys, for each router [no limit].")
]


def as_json(tenant: Tenant) -> dict[str, Any]:
    """A tenant as one JSON object."""
    return {
        "id": tenant.tenant_id,
        "name": tenant.name,
        "rate": tenant.rate,
        "shards": list(tenant.shards),
        "buckets": None if tenant.pinned is None else [tenant.pinned.buckets[0], tenant.pinned.buckets[-1]],
        "ready": tenant.ready,
    }


def _where(tenant: Tenant) -> str:
    if tenant.pinned is None:
        return "shared"
    span = f"{tenant.pinned.buckets[0]}-{tenant.pinned.buckets[-1]}"
    return f"{span} on {', '.join(tenant.shards)}{'' if tenant.ready else ' (not made yet)'}"


@tenant_app.command("create")
def create(
    name: _Name,
    rate: _Rate = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="A shard that alone may hold it. Repeatable. Fixed for good.")
    ] = None,
    buckets: Annotated[
        int, typer.Option(min=1, max=1024, help="Buckets of its own, with --pin. Fixed for good.")
    ] = operation.PINNED_BUCKETS_DEFAULT,
    first_bucket: Annotated[int | None, typer.Option(help="The first of them [the next free one].")] = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Make a tenant. Without --pin it shares the cluster's buckets with the others."""

    async def work(catalog: Catalog) -> Tenant:
        return await operation.create_tenant(catalog, name, rate, tuple(pin or ()), buckets, first_bucket)

    made = with_catalog(data, work)
    if json:
        print_json(as_json(made))
        return
    say(f"tenant {made.name} is made; its buckets: {_where(made)}. Next:")
    say(f"  voltroute key create --tenant {made.name} --scope ingest --scope read")


@tenant_app.command("list")
def list_tenants(data: DataOption = None, json: JsonOption = False) -> None:
    """All tenants."""
    found = with_catalog(data, lambda catalog: tenants.all_of(catalog, deadline_in(TIMEOUT_S)))
    if json:
        print_json({"tenants": [as_json(tenant) for tenant in found]})
        return
    rows = [(t.tenant_id, t.name, "-" if t.rate is None else f"{t.rate:g}/s", _where(t)) for t in found]
    print_table(("id", "tenant", "limit", "buckets"), rows)


@tenant_app.command("show")
def show(name: _Name, data: DataOption = None, json: JsonOption = False) -> None:
    """One tenant and its keys."""

    async def work(catalog: Catalog) -> tuple[Tenant, list[KeyRecord]]:
        tenant = await operation.find_tenant(catalog, name)
        return tenant, await keys.listed(catalog, name, deadline_in(TIMEOUT_S))

    tenant, found = with_catalog(data, work)
    valid = [key for key in found if key.state == "valid"]
    if json:
        print_json({**as_json(tenant), "keys": [key.key_id for key in valid]})
        return
    say(f"tenant {tenant.name} (id {tenant.tenant_id}), made {tenant.created_at:%Y-%m-%d}")
    say(f"limit: {'none' if tenant.rate is None else f'{tenant.rate:g} readings a second, for each router'}")
    say(f"buckets: {_where(tenant)}")
    say(f"valid keys: {', '.join(key.key_id for key in valid) or 'none'}")


@tenant_app.command("limit")
def limit(
    name: _Name,
    rate: Annotated[float, typer.Argument(min=0, help="Readings a second for each router; 0: no limit.")],
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Change how many readings a second a tenant may send."""

    async def work(catalog: Catalog) -> Tenant:
        await operation.set_rate(catalog, name, rate or None)
        return await operation.find_tenant(catalog, name)

    changed = with_catalog(data, work)
    if json:
        print_json(as_json(changed))
    else:
        say(f"tenant {name}: {'no limit' if changed.rate is None else f'{changed.rate:g} readings a second'}")
