"""The object store of an archive: a folder, S3, GCS or Azure. What gives access to it comes from the environment."""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

import orjson

from shards.catalog import archive as ledger
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, InvalidArgument, MachineError, Refused

SCHEMES: Final = ("file", "s3", "gs", "az", "abfs", "abfss")
FOLDER: Final = "v1"  # of objects
MARKER: Final = "voltroute.json"  # says whose archive it is
CATALOG_TIMEOUT_S: Final = 10.0
_TIMEOUT: Final = "30s"
_CONNECT_TIMEOUT: Final = "5s"
_RETRIES: Final[dict[str, Any]] = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}
_DETAIL_MAX: Final = 300


class StoreError(ClusterError):
    """The object store cannot be used, or what it gave is not what was put there."""


class Damaged(StoreError):
    """An object is not what was put there."""


def check_url(url: str) -> str:
    """A URL of an object store without a secret in it, as it is kept. InvalidArgument otherwise."""
    found = urlsplit(url)
    if found.scheme not in SCHEMES:
        raise InvalidArgument(
            f"--archive-to {url[:80]}: one of {', '.join(f'{each}://' for each in SCHEMES)} is expected"
        )
    if found.username or found.password or found.query or found.fragment:
        raise InvalidArgument("--archive-to: no user, password or options; access comes from the environment or a file")
    if found.scheme == "file" and (found.netloc or not found.path.startswith("/") or found.path.strip("/") == ""):
        raise InvalidArgument(f"--archive-to {url[:80]}: an absolute path is expected, as in file:///var/lib/archive")
    if found.scheme != "file" and not found.netloc:
        raise InvalidArgument(f"--archive-to {url[:80]}: a bucket is expected, as in {found.scheme}://bucket/prefix")
    return url.rstrip("/")


def _obstore() -> Any:
    try:
        import obstore  # noqa: PLC0415 - an extra, and slow to import
        import obstore.store  # noqa: PLC0415
    except ImportError:
        message = "the archive needs obstore, which is not installed: pip install 'voltroute[archive]'"
        raise MachineError(message) from None
    return obstore


def _words(error: Exception) -> str:
    """What a store says of an error: the first lines, without what is for its makers."""
    text = str(error).partition("\n\nDebug source")[0]
    return " ".join(text.split())[:_DETAIL_MAX] or type(error).__name__


@dataclass(frozen=True)
class Store:
    """Objects by key, below a URL. StoreError, with what the store said, for whatever fails."""

    url: str
    made: Any

    @classmethod
    def open(cls, url: str) -> "Store":
        """Nothing is asked of it yet."""
        obstore = _obstore()
        own: dict[str, Any] = {"mkdir": True}
        if urlsplit(url).scheme != "file":
            plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true"}
            options = {"timeout": _TIMEOUT, "connect_timeout": _CONNECT_TIMEOUT, "allow_http": plain}
            own = {"client_options": options, "retry_config": _RETRIES}
        try:
            return cls(url, obstore.store.from_url(url, **own))
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise StoreError(f"{url}: {_words(error)}") from error

    async def claim(self, cluster_id: str) -> None:
        """Write down whose it is; Refused when it is another cluster's. Shows that it can be written to."""
        mine = orjson.dumps({"cluster": cluster_id, "format": 1})
        if not await self._do(f"{self.url} cannot be written to", self._create, MARKER, mine):
            await self.check(cluster_id)

    async def check(self, cluster_id: str) -> None:
        """Refused unless it is this cluster's."""
        try:
            known = orjson.loads(await self._do(f"{self.url} could not be read", self._read, MARKER))["cluster"]
        except FileNotFoundError:
            raise Refused(f"{self.url} is no archive: it has no {MARKER}") from None
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise Refused(f"{self.url} is no archive: its {MARKER} is not one") from None
        if known != cluster_id:
            raise Refused(f"{self.url} is the archive of another cluster, {known}")

    async def put(self, key: str, path: Path) -> None:
        """A file as an object; the same again replaces it."""
        failed = f"{self.url}/{key} could not be written"
        try:
            await self._do(failed, self._put, key, path)
        except FileNotFoundError as error:  # the bucket, or the folder
            raise StoreError(f"{failed}: {_words(error)}") from error

    async def fetch(self, key: str, path: Path) -> tuple[int, str]:
        """Read an object whole, into a file; how many bytes, and their SHA-256. Damaged when it is not there."""
        try:
            found: tuple[int, str] = await self._do(f"{self.url}/{key} could not be read", self._fetch, key, path)
        except FileNotFoundError:
            raise Damaged(f"{self.url}/{key} is not there") from None
        return found

    async def keys(self) -> list[str]:
        """Of all objects of months, the oldest first."""
        found: list[str] = await self._do(f"{self.url} could not be listed", self._keys)
        return found

    async def delete(self, key: str) -> None:
        """It may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            await self._do(f"{self.url}/{key} could not be deleted", _obstore().delete, self.made, key)

    async def _do(self, failed: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """In a thread: obstore's own tasks may outlive the event loop, and a process that ends then is aborted."""
        try:
            return await asyncio.to_thread(work, *arguments)
        except FileNotFoundError:
            raise
        except (_obstore().exceptions.BaseError, OSError) as error:
            raise StoreError(f"{failed}: {_words(error)}") from error

    def _create(self, key: str, data: bytes) -> bool:
        """False when it is there."""
        obstore = _obstore()
        try:
            obstore.put(self.made, key, data, mode="create")
        except obstore.exceptions.AlreadyExistsError:
            return False
        except FileNotFoundError as error:  # the bucket, or the folder
            raise StoreError(f"{self.url} cannot be written to: {_words(error)}") from error
        self._keep(key)
        return True

    def _read(self, key: str) -> bytes:
        return bytes(_obstore().get(self.made, key).bytes())

    def _keys(self) -> list[str]:
        listed = [each for some in _obstore().list(self.made, f"{FOLDER}/") for each in some]
        return [each["path"] for each in sorted(listed, key=lambda each: each["last_modified"])]

    def _put(self, key: str, path: Path) -> None:
        _obstore().put(self.made, key, path)
        self._keep(key)

    def _fetch(self, key: str, path: Path) -> tuple[int, str]:
        size, digest = 0, hashlib.sha256()
        found = _obstore().get(self.made, key)
        with path.open("wb") as file:
            for part in found.stream():
                data = bytes(part)
                size += len(data)
                digest.update(data)
                file.write(data)
        return size, digest.hexdigest()

    def _keep(self, key: str) -> None:
        """Of a folder: on the disk itself, with its way there. Other stores answer when they have it."""
        if urlsplit(self.url).scheme != "file":
            return
        root = Path(url2pathname(urlsplit(self.url).path))
        path = root / key
        for each in (path, *path.parents):
            number = os.open(each, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
            if each == root:
                return


@dataclass
class Archive:
    """Where months of a cluster go now, and where others went before: an object stays in the store that has it."""

    catalog: Catalog
    cluster_id: str
    current: Store | None = None
    _known: dict[str, Store] = field(default_factory=dict)

    @classmethod
    async def of(cls, catalog: Catalog, cluster_id: str) -> "Archive":
        """As the catalog says now; each store is seen to be the cluster's own before it is used."""
        made = cls(catalog, cluster_id)
        await made.follow()
        return made

    async def follow(self) -> None:
        """The place may have been put right since."""
        url = await ledger.store_url(self.catalog, deadline_in(CATALOG_TIMEOUT_S))
        self.current = None if url is None else await self.at(url)

    async def at(self, url: str) -> Store:
        """The store at a URL. StoreError, Refused."""
        if url not in self._known:
            store = Store.open(url)
            await store.check(self.cluster_id)
            self._known[url] = store
        return self._known[url]
