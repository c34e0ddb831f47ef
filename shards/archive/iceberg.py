"""The archive as Apache Iceberg tables: one for a kind, of its objects as they are. It takes a while: use threads.

The ledger stays the authority: a table is made to hold the objects that the ledger says are there, in one commit. Its
metadata lies beside the objects. Tables are by month, as objects are.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from shards.errors import ClusterError, InvalidArgument, MachineError, Refused
from shards.kinds import Kind, Type
from shards.postgres.dsn import environment_of, redact_text

NAMESPACE: Final = "voltroute"
SCHEMA: Final = "iceberg"  # of Iceberg's own tables, in the catalog's database
FOLDER: Final = "iceberg"  # of metadata, in the archive
CLUSTER: Final = "voltroute.cluster"  # a property of a table: whose it is
_SCHEMES: Final = ("file", "s3", "gs", "abfs", "abfss")  # that readers of Iceberg know
_PROPERTIES: Final = {
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
}
# What libpq's variables are called in a connection string.
_KEYWORDS: Final = {"PGDATABASE": "dbname", "PGTARGETSESSIONATTRS": "target_session_attrs"}


@dataclass(frozen=True)
class Table:
    """What became of a kind's table: objects in it, how many of them came and how many others went with this commit."""

    kind: str
    name: str
    metadata: str
    objects: int
    added: int
    removed: int


def _pyiceberg() -> Any:
    try:
        import pyiceberg.catalog  # noqa: PLC0415 - an extra, and slow to import
        import pyiceberg.exceptions  # noqa: PLC0415
        import pyiceberg.partitioning  # noqa: PLC0415
        import pyiceberg.schema  # noqa: PLC0415
        import pyiceberg.transforms  # noqa: PLC0415
        import pyiceberg.types  # noqa: PLC0415
    except ImportError:
        message = "Iceberg needs pyiceberg, which is not installed: pip install 'voltroute[iceberg]'"
        raise MachineError(message) from None
    return pyiceberg


def check_store(url: str) -> None:
    """Refused for a store that readers of Iceberg do not know by this URL."""
    if (scheme := urlsplit(url).scheme) not in _SCHEMES:
        raise Refused(
            f"Iceberg's readers do not know {scheme}://: they do {', '.join(f'{each}://' for each in _SCHEMES)}"
        )


def _store_properties() -> dict[str, str]:
    """What the archive's own access does not tell pyarrow: keys come from the environment for both."""
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    found = {"s3.endpoint": endpoint, "s3.region": region, "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO"}
    return {name: value for name, value in found.items() if value}


def own_catalog(dsn: str, url: str) -> Any:
    """Iceberg's catalog in the database of a DSN, in its schema `SCHEMA`, which is there."""
    _pyiceberg()
    from pyiceberg.catalog.sql import SqlCatalog  # noqa: PLC0415
    from sqlalchemy import URL  # noqa: PLC0415

    known = environment_of(dsn)
    query = {_KEYWORDS.get(name, name.removeprefix("PG").lower()): value for name, value in known.items()}
    query["options"] = " ".join(filter(None, [query.get("options"), f"-csearch_path={SCHEMA}"]))
    uri = URL.create("postgresql+psycopg", query=query).render_as_string(hide_password=False)
    try:
        return SqlCatalog(NAMESPACE, uri=uri, warehouse=f"{url}/{FOLDER}", **_store_properties())
    except Exception as error:  # of SQLAlchemy, and of its driver
        raise ClusterError(f"Iceberg's catalog: {_words(error)}") from error


def named_catalog(name: str) -> Any:
    """One of pyiceberg's own configuration (`.pyiceberg.yaml`, PYICEBERG_CATALOG__NAME__...). InvalidArgument."""
    found = _pyiceberg()
    try:
        return found.catalog.load_catalog(name)
    except Exception as error:  # whatever the catalog's own driver says
        raise InvalidArgument(f"--catalog {name[:80]}: {_words(error)}") from error


def put(catalog: Any, kind: Kind, url: str, cluster_id: str, wanted: Mapping[str, int]) -> Table:
    """Make the kind's table hold the wanted objects (URL -> readings), and no other; where that is so, do nothing.

    Refused when it is another cluster's. ClusterError when somebody else commits at the same time, or something fails.
    """
    found = _pyiceberg()
    try:
        table = _table(found, catalog, kind, url, cluster_id)
        known = _files(table)
        new, gone = sorted(wanted.keys() - known.keys()), sorted(known.keys() - wanted.keys())
        if new or gone:
            with table.transaction() as transaction:
                _commit(transaction, _schema(found, kind), [known[path] for path in gone], new)
            _check({path: each.record_count for path, each in _files(table).items()}, wanted)
    except found.exceptions.CommitFailedException as error:
        raise ClusterError(f"somebody else changed the table of {kind} at the same time: try again") from error
    except (ClusterError, InvalidArgument):
        raise
    except Exception as error:  # of pyiceberg, pyarrow and SQLAlchemy, which have no ancestor in common
        raise ClusterError(f"Iceberg's table of {kind}: {_words(error)}") from error
    return Table(kind.name, f"{NAMESPACE}.{kind.name}", table.metadata_location, len(wanted), len(new), len(gone))


def _files(table: Any) -> dict[str, Any]:
    return (
        {}
        if table.current_snapshot() is None
        else {each.file.file_path: each.file for each in table.scan().plan_files()}
    )


def _check(there: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    for path, readings in wanted.items():
        if there.get(path) != readings:
            raise ClusterError(
                f"{path} has {there.get(path)} readings, and {readings} were archived: verify the archive"
            )


def _table(found: Any, catalog: Any, kind: Kind, url: str, cluster_id: str) -> Any:
    name = (NAMESPACE, kind.name)
    catalog.create_namespace_if_not_exists(NAMESPACE)
    schema = _schema(found, kind)
    month = found.partitioning.PartitionField(
        schema.find_field("timestamp").field_id, 1000, found.transforms.MonthTransform(), "month"
    )
    table = catalog.create_table_if_not_exists(
        name,
        schema,
        location=f"{url}/{FOLDER}/{kind}",
        partition_spec=found.partitioning.PartitionSpec(month),
        properties={**_PROPERTIES, CLUSTER: cluster_id},
    )
    if (owner := table.properties.get(CLUSTER)) != cluster_id:
        raise Refused(f"Iceberg's table {NAMESPACE}.{kind} is of another cluster, {owner}")
    return table


def _commit(transaction: Any, schema: Any, gone: list[Any], new: list[str]) -> None:
    """Both at once. A field that was declared since the last time is a column more."""
    with transaction.update_schema() as update:
        update.union_by_name(schema)
    if gone:
        with transaction.update_snapshot().overwrite() as snapshot:
            for each in gone:
                snapshot.delete_data_file(each)
    if new:
        transaction.add_files(new, check_duplicate_files=False)


def _schema(found: Any, kind: Kind) -> Any:
    """The columns of an object, as `rows.Month.schema` has them."""
    types = found.types
    of = {
        Type.FLOAT8: types.DoubleType,
        Type.FLOAT4: types.FloatType,
        Type.INT: types.IntegerType,
        Type.BOOL: types.BooleanType,
        Type.TEXT: types.StringType,
    }
    columns = [
        (kind.id_column, types.StringType),
        ("tenant_id", types.IntegerType),
        ("timestamp", types.TimestamptzType),
    ]
    columns += [(field.column, of[field.type]) for field in kind.stored]
    return found.schema.Schema(
        *(types.NestedField(at, name, made(), required=False) for at, (name, made) in enumerate(columns, 1))
    )


def _words(error: Exception) -> str:
    """The first line of it, without what SQLAlchemy says of itself."""
    return redact_text((str(error).splitlines() or [type(error).__name__])[0])[:300]
