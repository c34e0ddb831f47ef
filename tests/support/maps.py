"""Changing the shard map by hand: what a move does, without its care for data."""

from collections.abc import Sequence
from datetime import UTC, datetime

from shards.storage.partitions import month_of, runway
from tests.support.ledger import execute, fetch
from tests.support.servers import TestCluster


async def give(cluster: TestCluster, bucket: int, source: str, target: str) -> None:
    """Take an (empty or expendable) bucket from `source` and let `target` own it; the catalog learns of it last."""
    for record in await fetch(cluster.shards[source], "SELECT name FROM bucket_table WHERE bucket = $1", bucket):
        await execute(cluster.shards[source], f"DROP TABLE {record['name']} CASCADE")
    await execute(cluster.shards[source], "DELETE FROM owned_bucket WHERE bucket = $1", bucket)
    await fetch(cluster.shards[source], "SELECT forget_bucket($1::smallint)", bucket)
    now = datetime.now(UTC)
    attach = "SELECT attach_bucket($1::smallint, $2, $3::date[])"
    await execute(cluster.shards[target], attach, bucket, month_of(now), runway(now))
    change = "UPDATE bucket_map SET shard_id = (SELECT shard_id FROM shard WHERE name = $2) WHERE bucket = $1"
    await execute(cluster.catalog_dsn, change, bucket, target)


async def owners(cluster: TestCluster) -> list[str]:
    """Owner of each bucket by the catalog."""
    sql = "SELECT s.name FROM bucket_map JOIN shard AS s USING (shard_id) ORDER BY bucket"
    return [record["name"] for record in await fetch(cluster.catalog_dsn, sql)]


async def remap(cluster: TestCluster, wanted: Sequence[str]) -> None:
    """Give every bucket to the owner that `wanted` names. Data of moved buckets is gone."""
    for bucket, (now, then) in enumerate(zip(await owners(cluster), wanted, strict=True)):
        if now != then:
            await give(cluster, bucket, now, then)
