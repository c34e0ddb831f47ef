"""From a device ID to its bucket. The one function that decides where a reading lives."""

from dataclasses import dataclass
from typing import Final

import mmh3

from shards.errors import InvalidArgument

HASH_SEED: Final = 0
BUCKETS_MAX: Final = 1024
BUCKETS_DEFAULT: Final = 64


def bucket_of(device_id: str, bucket_count: int) -> int:
    """Bucket (0 .. bucket_count - 1) of a device: unsigned murmurhash3-32 of its UTF-8 ID, modulo.

    Changing this re-homes every device; golden pairs in the tests pin it.
    """
    return mmh3.hash(device_id, HASH_SEED, False) % bucket_count


@dataclass(frozen=True)
class BucketRange:
    """`count` consecutive buckets, over which the devices of some tenants are hashed."""

    start: int
    count: int

    def bucket(self, device_id: str) -> int:
        """Bucket of a device in this range."""
        return self.start + bucket_of(device_id, self.count)

    @property
    def buckets(self) -> range:
        return range(self.start, self.start + self.count)


def check_bucket_count(bucket_count: int) -> int:
    """Return `bucket_count` if a cluster can have it: a power of two from 1 to 1024. InvalidArgument otherwise."""
    if not 1 <= bucket_count <= BUCKETS_MAX or bucket_count & (bucket_count - 1):
        message = f"the number of buckets must be a power of two from 1 to {BUCKETS_MAX}, not {bucket_count}"
        raise InvalidArgument(message)
    return bucket_count
