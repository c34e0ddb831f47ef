"""lifecycle: what becomes of readings that get old."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, TypeAlias

import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import print_json, print_table, say
from router.cli.target import DataOption, JsonOption
from shards.archive.store import check_url
from shards.catalog import lifecycle as catalogued
from shards.catalog.archive import store_url
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, InvalidArgument
from shards.operations import lifecycle as operation
from shards.operations.lifecycle import OfShard
from shards.policy import NEVER as NEVER_
from shards.policy import Policies, Policy, duration_text, read_after, read_hot
from shards.tiers.due import NEVER, Tiers
from shards.tiers.runner import Result

TIMEOUT_S: Final = 10.0
_Policies: TypeAlias = tuple[Policies, str, str | None]
_Tenant = Annotated[
    str | None,
    typer.Option(help="For the buckets of this tenant alone, which has some of its own.", show_default=False),
]
lifecycle_app = typer.Typer(
    help="What becomes of readings that get old: frozen, packed, archived, dropped.", no_args_is_help=True
)
policy_app = typer.Typer(help="When it happens, kind by kind.", no_args_is_help=True)
lifecycle_app.add_typer(policy_app, name="policy")
_WORDS: Final = {
    "roll": "readings rolled up",
    "freeze": "leaves frozen",
    "pack": "readings packed",
    "place": "readings copied to a tablespace",
    "drop": "leaves dropped",
    "merge": "days merged",
    "archive": "readings taken out",
    "expire": "readings dropped from the archive",
}


@policy_app.command("set")
def set_policy(
    kind: Annotated[str | None, typer.Argument(help="The kind [all of them].")] = None,
    hot: Annotated[str | None, typer.Option(help="How long readings stay hot, as in 7d; then they are packed.")] = None,
    archive_after: Annotated[
        str | None, typer.Option(help="How old a month is when it goes to the archive, as in 90d; or never.")
    ] = None,
    drop_after: Annotated[
        str | None, typer.Option(help="How old a month is when it is dropped for good, also there; or never.")
    ] = None,
    rollups_for: Annotated[
        str | None, typer.Option(help="How long sums by minute, hour and day are kept, as in 4000d; or never dropped.")
    ] = None,
    archive_to: Annotated[
        str | None, typer.Option(help="Where the archive is: file:///folder, s3://bucket/prefix, gs://..., az://...")
    ] = None,
    tablespace: Annotated[
        str | None,
        typer.Option(help="A tablespace to which frozen partitions go instead of being packed; none: packed."),
    ] = None,
    leaf: Annotated[str | None, typer.Option(help="How much time a new partition holds: day, week or month.")] = None,
    tenant: _Tenant = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Pack readings of a kind when they are older, archive months, drop them; the leader does it by itself.

    What gives access to the archive comes from the environment of each router, and of this command.
    """
    spans: dict[str, timedelta | None] = {} if hot is None else {"hot": read_hot(hot)}
    for name, option, text in (
        ("archive", "--archive-after", archive_after),
        ("drop", "--drop-after", drop_after),
        ("rollups", "--rollups-for", rollups_for),
    ):
        if text is not None:
            spans[name] = read_after(text, option)
    if not spans and leaf is None and archive_to is None and tablespace is None:
        raise InvalidArgument(
            "--hot, --archive-after, --drop-after, --rollups-for, --archive-to, --tablespace or --leaf is needed"
        )
    change = operation.Change(spans, leaf, None if archive_to is None else check_url(archive_to), tablespace)

    async def work(catalog: Catalog) -> _Policies:
        made = await operation.set_policy(catalog, kind, change, tenant)
        return await _with_places(catalog, made)

    _show(*with_catalog(data, work), json=json)


@policy_app.command("show")
def show_policy(data: DataOption = None, json: JsonOption = False) -> None:
    """The policies, and how much time a new partition holds."""

    async def work(catalog: Catalog) -> _Policies:
        return await _with_places(catalog, await catalogued.policies(catalog, deadline_in(TIMEOUT_S)))

    _show(*with_catalog(data, work), json=json)


@policy_app.command("remove")
def remove_policy(
    kind: Annotated[str, typer.Argument(help="The kind.")], tenant: _Tenant = None, data: DataOption = None
) -> None:
    """Freeze no more readings of a kind. What is packed stays packed."""
    with_catalog(data, lambda catalog: operation.remove_policy(catalog, kind, tenant))
    if tenant is None:
        say(f"{kind} has no policy any more; what is packed stays packed")
    else:
        say(f"{kind} of {tenant} has no policy of its own any more: the kind's holds, if there is one")


async def _with_places(catalog: Catalog, policies: Policies) -> _Policies:
    deadline = deadline_in(TIMEOUT_S)
    return policies, (await catalog.info(deadline)).leaf_width, await store_url(catalog, deadline)


def _show(policies: Policies, width: str, archive: str | None, *, json: bool) -> None:
    if json:
        spans = [
            {"kind": each.kind, "tenant": each.tenant, **_spans(each), "tablespace": each.tablespace}
            for each in policies
        ]
        print_json({"leaf": width, "archive": archive, "policies": spans})
        return
    rows = [(each.whose, *(value or NEVER_ for value in _spans(each).values())) for each in policies]
    print_table(("kind", "hot", "archive after", "drop after", "rollups for"), rows)
    for each in policies:
        if each.tablespace is not None:
            say(f"{each.whose}: partitions go to tablespace {each.tablespace}, and are packed before they leave")
    say(f"new partitions hold a {width}; a partition is packed when all of it is older than what stays hot")
    if archive is not None:
        say(f"the archive is in {archive}")


def _spans(policy: Policy) -> dict[str, str | None]:
    spans = {"hot": policy.hot, "archiveAfter": policy.archive, "dropAfter": policy.drop, "rollupsFor": policy.rollups}
    return {name: None if span is None else duration_text(span) for name, span in spans.items()}


@lifecycle_app.command("plan")
def plan(data: DataOption = None, json: JsonOption = False) -> None:
    """What is due now, step by step; changes nothing."""
    found = with_catalog(data, operation.look)
    due = [(each.shard, tiers) for each in found for tiers in each.tiers if tiers.step is not None]
    leaving = [(each.shard, *month) for each in found for month in each.leaving]
    if json:
        months = [
            {"shard": shard, "bucket": bucket, "kind": kind, "month": f"{month:%Y-%m}"}
            for shard, bucket, kind, month in leaving
        ]
        print_json({"due": [{"shard": shard, **_told(tiers)} for shard, tiers in due], "leaving": months})
        return
    if not due and not leaving:
        say("nothing is due")
        return
    counted = Counter((shard, tiers.kind, str(tiers.step)) for shard, tiers in due)
    counted += Counter((shard, kind, f"{month:%Y-%m} leaves") for shard, _, kind, month in leaving)
    rows = [(shard, kind, step, count) for (shard, kind, step), count in sorted(counted.items(), key=str)]
    print_table(("shard", "kind", "next step", "buckets"), rows)
    say("the leader does it by itself; `voltroute lifecycle run` does it now")


@lifecycle_app.command("run")
def run(
    wait: Annotated[bool, typer.Option("--wait", help="Until nothing is left, also what waits for readers.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that --wait may take.")] = 3600,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Do all that is due now. Buckets in a move are left alone."""

    async def work(catalog: Catalog) -> dict[str, Result]:
        if not wait:
            return await operation.run(catalog)
        try:
            return await operation.run_until_done(catalog, timeout)
        except TimeoutError as error:
            raise ClusterError(f"not done in {timeout:g} s: {error}") from None

    results = with_catalog(data, work)
    if json:
        print_json({"shards": {name: _result(result) for name, result in results.items()}})
    else:
        for name, result in results.items():
            words = [f"{count:,} {_WORDS[step]}" for step, count in sorted(result.done.items())]
            say(f"{name}: {', '.join(words) or 'nothing was due'}")
            if result.waiting:
                say(f"  {result.waiting} packed leaves may still be read by old statements; they are dropped later")
            for what, why in result.failed.items():
                say(f"  {what}: {why}")
    if any(result.failed for result in results.values()):
        raise typer.Exit(1)


def _result(result: Result) -> dict[str, Any]:
    return {
        "done": {step.value: n for step, n in result.done.items()},
        "waiting": result.waiting,
        "failed": result.failed,
    }


@lifecycle_app.command("status")
def status(data: DataOption = None, json: JsonOption = False) -> None:
    """Where every shard's history is: up to when it is packed, what waits."""
    found = with_catalog(data, operation.look)
    if json:
        print_json(
            {"shards": [{"name": each.shard, "tiers": [_told(tiers) for tiers in each.tiers]} for each in found]}
        )
        return
    rows = [_row(each, kind) for each in found for kind in dict.fromkeys(tiers.kind for tiers in each.tiers)]
    print_table(("shard", "kind", "buckets", "packed until", "packed", "late", "undropped", "due"), rows)


def _row(of_shard: OfShard, kind: str) -> Sequence[object]:
    mine = [tiers for tiers in of_shard.tiers if tiers.kind == kind]
    until = min(tiers.packed_until for tiers in mine)
    return (
        of_shard.shard,
        kind,
        len(mine),
        _day(until),
        f"{sum(tiers.packed_readings for tiers in mine):,}",
        f"{sum(tiers.late for tiers in mine):,}",
        sum(tiers.undropped for tiers in mine),
        sum(tiers.step is not None for tiers in mine),
    )


def _day(moment: datetime) -> str:
    return "-" if moment == NEVER else f"{moment:%Y-%m-%d}"


def _told(tiers: Tiers) -> dict[str, Any]:
    return {
        "bucket": tiers.bucket,
        "kind": tiers.kind,
        "frozenUntil": None if tiers.frozen_until == NEVER else tiers.frozen_until,
        "packedUntil": None if tiers.packed_until == NEVER else tiers.packed_until,
        "packedReadings": tiers.packed_readings,
        "late": tiers.late,
        "undropped": tiers.undropped,
        "due": None if tiers.step is None else tiers.step.value,
    }
