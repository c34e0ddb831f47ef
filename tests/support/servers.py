"""PostgreSQL servers for the tests: embedded ones, a container, or what VOLTROUTE_TEST_POSTGRES names."""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from shards.buckets import bucket_of
from shards.embedded.cluster import EmbeddedCluster, Options
from shards.operations.init import init_cluster
from shards.postgres import migrate
from shards.postgres.migrate import CATALOG, SHARD

IMAGE = "postgres:17-alpine"
SERVERS = 4
_SHM_NEEDED = 3 * 2**30
_numbers = itertools.count(1)


@dataclass(frozen=True)
class TestCluster:
    """A cluster made for a test: databases of its own on the shared servers."""

    __test__ = False
    catalog_dsn: str
    shards: dict[str, str]
    buckets: int

    def owner(self, device_id: str) -> str:
        """Shard of a device under the first map (buckets are dealt out in turn)."""
        names = list(self.shards)
        return names[bucket_of(device_id, self.buckets) % len(names)]

    def devices_of(self, shard: str, count: int, prefix: str = "DEV") -> list[str]:
        """IDs of devices that live on `shard`."""
        ids = (f"{prefix}-{number}" for number in itertools.count())
        return list(itertools.islice((i for i in ids if self.owner(i) == shard), count))


def scratch_folder() -> Path:
    """A folder for throw-away servers: in memory when there is room, and enterable by PostgreSQL's account."""
    shm = Path("/dev/shm")
    base = shm if shm.is_dir() and shutil.disk_usage(shm).free > _SHM_NEEDED and os.access(shm, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="voltroute-test-", dir=base))
    folder.chmod(0o711)
    return folder


@contextmanager
def docker_server() -> Iterator[str | None]:
    """Admin DSN of a throw-away container; None when no engine answers or it lacks the image."""
    if not (os.environ.get("DOCKER_HOST") or Path("/var/run/docker.sock").exists()):
        yield None
        return
    import docker  # noqa: PLC0415 - only when a container is wanted
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415

    try:
        docker.from_env().images.get(IMAGE)
    except (docker.errors.DockerException, docker.errors.ImageNotFound):
        yield None
        return
    with PostgresContainer(IMAGE, driver=None) as container:
        yield container.get_connection_url()


@asynccontextmanager
async def test_servers() -> AsyncIterator[list[str]]:
    """Admin DSNs (superuser, database postgres) of the servers that the session's clusters live on."""
    async with _bare_servers() as servers:
        await asyncio.gather(*(_make_templates(server) for server in servers))
        yield servers
        for server, target in itertools.product(servers, (CATALOG, SHARD)):
            await drop_database(server, _template(target))


@asynccontextmanager
async def _bare_servers() -> AsyncIterator[list[str]]:
    wanted = os.environ.get("VOLTROUTE_TEST_POSTGRES", "auto")
    if wanted not in {"auto", "docker", "embedded"}:
        yield wanted.split(",")
        return
    if wanted != "embedded":
        with docker_server() as dsn:
            if dsn is not None:
                yield [dsn]
                return
        if wanted == "docker":
            message = f"no Docker engine with the image {IMAGE} answers"
            raise RuntimeError(message)
    options = Options(scratch_folder(), shards=SERVERS - 1, buckets=4, durable=False, temporary=True)
    async with EmbeddedCluster(options) as servers:
        yield [servers.state.superuser_dsn(name, "postgres") for name in servers.state.ports]


def database_dsn(server: str, database: str) -> str:
    """The same server and login, another database."""
    return urlunsplit(urlsplit(server)._replace(path=f"/{database}"))


def _template(target: str) -> str:
    return f"template_{os.getpid()}_{target}"


async def _make_templates(server: str) -> None:
    """Databases with the schema and nothing else: to copy one takes half the time of migrating anew."""
    catalog = await new_database(server, _template(CATALOG))
    shard = await new_database(server, _template(SHARD))
    for report in await migrate.migrate(catalog, {SHARD: shard}):
        assert report.error is None, report


async def new_database(server: str, name: str, template: str = "template1") -> str:
    """A fresh database, empty or a copy of a template; its DSN."""
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
    finally:
        await connection.close()
    return database_dsn(server, name)


async def drop_database(server: str, name: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await connection.close()


@asynccontextmanager
async def new_cluster(servers: list[str], shards: int = 4, buckets: int = 16) -> AsyncIterator[TestCluster]:
    """A catalog and `shards` shards on the servers in turn, dropped at the end."""
    mark = f"t{os.getpid()}_{next(_numbers)}"
    names = [f"s{number}" for number in range(1, shards + 1)]
    homes = dict(zip(["catalog", *names], itertools.cycle(servers), strict=False))

    async def make(name: str, server: str) -> str:
        return await new_database(server, f"{mark}_{name}", _template(CATALOG if name == "catalog" else SHARD))

    dsns = dict(zip(homes, await asyncio.gather(*(make(*home) for home in homes.items())), strict=True))
    catalog = dsns.pop("catalog")
    try:
        await init_cluster(catalog, dsns, buckets)
        yield TestCluster(catalog, dsns, buckets)
    finally:
        await asyncio.gather(*(drop_database(server, f"{mark}_{name}") for name, server in homes.items()))
