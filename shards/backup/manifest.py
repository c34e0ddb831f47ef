"""What is in a backup: a file beside the dumps, written last. Without it a folder is no backup."""

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from shards.errors import ClusterError, InvalidArgument

FILE: Final = "backup.json"
FORMAT: Final = 1
CATALOG: Final = "catalog"
_READ: Final = 2**20


class Part(msgspec.Struct):
    """A database: its server's version, pg_dump's, and roles to which something was granted there.

    Of a shard: its row in the catalog, and the buckets that it owned.
    """

    version: int
    program: int = 0
    roles: list[str] = msgspec.field(default_factory=list)
    row: dict[str, Any] = msgspec.field(default_factory=dict)
    owned: list[int] = msgspec.field(default_factory=list)


class Manifest(msgspec.Struct):
    """`point`: what was acknowledged before it is in the backup. `files`: path -> size and SHA-256.

    The shards' rows hold passwords.
    """

    format: int
    cluster_id: str
    bucket_count: int
    point: datetime
    ended: datetime
    catalog: Part
    shards: dict[str, Part]
    files: dict[str, tuple[int, str]] = msgspec.field(default_factory=dict)


def begin(folder: Path) -> None:
    """A new folder, ours alone. InvalidArgument when there is something in it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InvalidArgument(f"{folder} is not empty: name a new folder")
        folder.chmod(0o700)
    except OSError as error:
        raise InvalidArgument(f"{folder}: {error.strerror or error}") from None


def write(folder: Path, manifest: Manifest) -> None:
    """Everything is on disk before the manifest is, and the manifest whole or not at all."""
    manifest.files = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        manifest.files[str(path.relative_to(folder))] = _digest(path, sync=True)
    fresh = folder / f"{FILE}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest)))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / FILE)


def read(folder: Path) -> Manifest:
    """InvalidArgument when the folder is no backup, or one of a newer release."""
    try:
        manifest = msgspec.json.decode((folder / FILE).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise InvalidArgument(f"{folder} is no backup: there is no {FILE} in it (it is written last)") from None
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"{folder / FILE}: {error}") from None
    if manifest.format != FORMAT:
        raise InvalidArgument(f"{folder} has the format {manifest.format}, and this release reads {FORMAT}")
    return manifest


def verify(folder: Path, manifest: Manifest) -> None:
    """ClusterError names the first file that is not what was written."""
    for name, (size, sha256) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ClusterError(f"{path} is missing: this backup is not whole")
        if _digest(path) != (size, sha256):
            raise ClusterError(f"{path} is not what was backed up: it was changed, or damaged")


def _digest(path: Path, *, sync: bool = False) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(_READ):
            digest.update(part)
            size += len(part)
        if sync:
            os.fsync(file.fileno())
    return size, digest.hexdigest()
