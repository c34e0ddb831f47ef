"""Where buckets should lie. Pure: no I/O, no clock."""

from collections.abc import Sequence

from shards.errors import InvalidArgument


def spread(bucket_count: int, shards: Sequence[str]) -> tuple[str, ...]:
    """Owners of a new cluster's buckets: dealt out in turn, so that no shard has two more than another.

    InvalidArgument when there is no shard, or more shards than buckets.
    """
    if not 1 <= len(shards) <= bucket_count:
        message = f"{bucket_count} buckets cannot be spread over {len(shards)} shards"
        raise InvalidArgument(message)
    return tuple(shards[bucket % len(shards)] for bucket in range(bucket_count))
