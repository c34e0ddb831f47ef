"""Which shard owns which bucket, at one epoch. Immutable and pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from shards.buckets import BucketRange


@dataclass(frozen=True)
class ShardMap:
    """Bucket -> shard name (`owners[bucket]`), as of `epoch`. Every bucket has exactly one owner.

    `pinned`: the tenants that have buckets of their own, behind those that all others share.
    """

    epoch: int
    owners: tuple[str, ...]
    pinned: Mapping[int, BucketRange] = field(default_factory=dict)

    @property
    def bucket_count(self) -> int:
        return len(self.owners)

    @cached_property
    def shared(self) -> BucketRange:
        """The buckets of all tenants that have none of their own."""
        return BucketRange(0, len(self.owners) - sum(each.count for each in self.pinned.values()))

    def range_of(self, tenant: int) -> BucketRange:
        """The buckets among which a tenant's devices are."""
        return self.pinned.get(tenant, self.shared)

    def bucket(self, tenant: int, device_id: str) -> int:
        """Bucket of a tenant's device in this cluster."""
        return self.range_of(tenant).bucket(device_id)

    def owner(self, bucket: int) -> str:
        """Name of the shard that owns `bucket`."""
        return self.owners[bucket]

    @cached_property
    def by_shard(self) -> Mapping[str, tuple[int, ...]]:
        """Shard name -> its buckets, ascending. Shards that own nothing are absent."""
        grouped: dict[str, list[int]] = {}
        for bucket, owner in enumerate(self.owners):
            grouped.setdefault(owner, []).append(bucket)
        return {owner: tuple(buckets) for owner, buckets in grouped.items()}

    def regroup(self, buckets: Iterable[int]) -> dict[str, list[int]]:
        """Shard name -> those of `buckets` that it owns, ascending and without repeats."""
        grouped: dict[str, list[int]] = {}
        for bucket in sorted(set(buckets)):
            grouped.setdefault(self.owners[bucket], []).append(bucket)
        return grouped


def map_from_rows(
    epoch: int,
    bucket_count: int,
    rows: Iterable[tuple[int, str]],
    pinned: Mapping[int, BucketRange] | None = None,
) -> ShardMap:
    """Build a map from (bucket, shard name) rows; ValueError when a bucket is missing, doubled or out of range.

    `bucket_count`: of the shared buckets. The ranges of `pinned` (tenant -> range) follow them without a gap.
    """
    pinned = pinned or {}
    for each in sorted(pinned.values(), key=lambda each: each.start):
        if each.start != bucket_count:
            message = f"the buckets of a pinned tenant begin at {each.start}, not at {bucket_count}"
            raise ValueError(message)
        bucket_count += each.count
    owners: list[str | None] = [None] * bucket_count
    for bucket, owner in rows:
        if not 0 <= bucket < bucket_count or owners[bucket] is not None:
            message = f"bucket {bucket} is out of range or listed twice"
            raise ValueError(message)
        owners[bucket] = owner
    complete = tuple(owner for owner in owners if owner is not None)
    if len(complete) != bucket_count:
        missing = [bucket for bucket, owner in enumerate(owners) if owner is None]
        message = f"no shard owns the buckets {missing}"
        raise ValueError(message)
    return ShardMap(epoch, complete, pinned)
