"""status: a cluster on one page."""

from dataclasses import asdict
from typing import Any, Final

import msgspec

from router.cli.catalog import with_catalog
from router.cli.show.moves import head
from router.cli.show.output import print_json, print_table, ranges, say, size_text
from router.cli.target import DataOption, JsonOption
from router.reads.rebalance import status as rebalance_status
from router.wire.answers import RebalanceStatus
from shards.catalog import kinds
from shards.catalog.database import Catalog, ClusterInfo
from shards.catalog.shard_map import ShardMap
from shards.clock import deadline_in
from shards.operations import schema
from shards.operations.survey import Survey, survey

TIMEOUT_S: Final = 10.0
COLUMNS: Final = ("shard", "state", "up", "server", "size", "readings", "buckets", "which")


def status(data: DataOption = None, json: JsonOption = False) -> None:
    """The cluster on one page: map, shards, schema, moves, and what needs somebody. Exit code 0 whatever it shows."""
    info, shard_map, seen, moves, behind, begun = with_catalog(data, _ask)
    attention = _attention(seen, shard_map, moves, behind)
    if begun:
        attention.append(f"! {', '.join(begun)}: declared, and not on every shard yet: `voltroute kind resume`")
    if json:
        print_json(_as_json(info, seen, moves, attention))
        return
    readings = sum(each.readings or 0 for each in seen)
    size = sum(each.size_bytes or 0 for each in seen)
    up = sum(each.answers for each in seen)
    say(f"cluster {info.cluster_id}: {info.bucket_count} buckets, map epoch {info.epoch}")
    say(f"{up} of {len(seen)} shards answer; about {readings:,} readings, {size_text(size)}")
    print_table(COLUMNS, map(row_of, seen))
    say(head(moves))
    for line in attention or ["nothing needs you; every check is in `voltroute doctor`"]:
        say(line)


async def _ask(
    catalog: Catalog,
) -> tuple[ClusterInfo, ShardMap | None, list[Survey], RebalanceStatus, list[str], list[str]]:
    deadline = deadline_in(TIMEOUT_S)
    info, records = await catalog.info(deadline), await catalog.shards(deadline)
    shard_map = await catalog.shard_map(deadline)
    moves = await rebalance_status(catalog, deadline, reasons=True)
    reports = await schema.status(catalog.dsn)
    begun = [each.whole.name for each in await kinds.declared(catalog, deadline) if each.is_open]
    behind = [report.database for report in reports if report.pending]
    return info, shard_map, await survey(records, shard_map), moves, behind, begun


def row_of(each: Survey) -> tuple[object, ...]:
    """A shard as a row of COLUMNS."""
    return (
        each.name,
        each.state,
        f"{each.latency_ms:g} ms" if each.answers else "away",
        each.version or "-",
        "-" if each.size_bytes is None else size_text(each.size_bytes),
        "-" if each.readings is None else f"{each.readings:,}",
        len(each.mapped),
        ranges(each.mapped),
    )


def _attention(seen: list[Survey], shard_map: ShardMap | None, moves: RebalanceStatus, behind: list[str]) -> list[str]:
    """What somebody should look at, each with the command to paste."""
    found = [f"! {each.name} is away: {each.detail}; see `voltroute doctor`" for each in seen if not each.answers]
    if shard_map is None:
        found.append("! there is no shard map: repeat the `voltroute init` that was interrupted")
    if behind:
        found.append(f"! the schema of {', '.join(behind)} is behind this release: `voltroute migrate up`")
    held = [move.move_id for move in moves.moves if move.held]
    if held:
        found.append(f"! moves {', '.join(map(str, held))} wait for you: `voltroute rebalance status` says why")
    if moves.runner is None or not moves.runner.leads:
        found.append("! nobody leads: no router runs, so no partitions are made and nothing moves")
    idle = moves.rebalance is None or moves.rebalance.ended_at is not None
    if idle and (apart := [each.name for each in seen if each.answers and each.owned != each.mapped]):
        found.append(f"! {', '.join(apart)}: own other buckets than the map says; see `voltroute check`")
    return found


def _as_json(info: ClusterInfo, seen: list[Survey], moves: RebalanceStatus, attention: list[str]) -> dict[str, Any]:
    return {
        "cluster": {"id": info.cluster_id, "epoch": info.epoch, "buckets": info.bucket_count},
        "shards": [asdict(each) for each in seen],
        "rebalance": msgspec.to_builtins(moves),
        "attention": [line.removeprefix("! ") for line in attention],
    }
