"""Data source names: changing who connects, and never showing a password."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from shards.errors import InvalidArgument

REDACTED: Final = "***"
PORT: Final = 5432
# Parameters of a DSN, as the variables that libpq reads.
_LIBPQ: Final = {
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "host": "PGHOST",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "database": "PGDATABASE",
    "options": "PGOPTIONS",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}
_SECRET_PARAMETERS: Final = frozenset({"password", "sslpassword", "passfile"})
_PASSWORD_IN_TEXT: Final = re.compile(r"(postgres(?:ql)?://[^:/@\s]*:)[^@\s]*@", re.IGNORECASE)


def check_dsn(dsn: str) -> str:
    """Return `dsn` if it is a PostgreSQL URL that names a database; InvalidArgument (never showing it) otherwise."""
    parts = urlsplit(dsn)
    if parts.scheme not in {"postgresql", "postgres"}:
        message = "a DSN looks like postgresql://user@host:5432/database, with the password in it or in a password file"
        raise InvalidArgument(message)
    query = dict(parse_qsl(parts.query))
    if not parts.path.strip("/") and "dbname" not in query:
        message = "the DSN names no database: postgresql://user@host:5432/database"
        raise InvalidArgument(message)
    return dsn


def with_login(dsn: str, user: str, password: str) -> str:
    """The same database, reached as another user."""
    parts = urlsplit(dsn)
    _, _, hosts = parts.netloc.rpartition("@")
    netloc = f"{quote(user, safe='')}:{quote(password, safe='')}@{hosts}"
    kept = [(key, value) for key, value in parse_qsl(parts.query) if key not in {"user", "password"}]
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(kept)))


def at_address(dsn: str, address: str) -> str:
    """The same database and login on other servers: `host:port`, several with commas, or a folder with a socket."""
    parts = urlsplit(dsn)
    login, at, _ = parts.netloc.rpartition("@")
    kept = [(key, value) for key, value in parse_qsl(parts.query) if key not in {"host", "port"}]
    return urlunsplit(parts._replace(netloc=f"{login}{at}{quote(address, safe=':,[]%')}", query=urlencode(kept)))


def environment_of(dsn: str) -> dict[str, str]:
    """The same for PostgreSQL's programs, as variables of their environment; what only asyncpg knows is left out."""
    parts = urlsplit(dsn)
    login, _, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    pairs = [_host_and_port(each) for each in hosts.split(",")]
    found = {
        "PGUSER": unquote(user),
        "PGPASSWORD": unquote(password) if colon else "",
        "PGHOST": ",".join(unquote(host).strip("[]") for host, _ in pairs),
        "PGPORT": ",".join(port for _, port in pairs) if any(port for _, port in pairs) else "",
        "PGDATABASE": unquote(parts.path.strip("/")),
    }
    for name, value in parse_qsl(parts.query):
        if name in _LIBPQ:
            found[_LIBPQ[name]] = value
    return {name: value for name, value in found.items() if value}


@dataclass(frozen=True)
class Address:
    """A server of a DSN; no `host`: where the DSN, a service file or the environment says."""

    host: str | None = None
    port: int = PORT

    def __str__(self) -> str:
        if self.host is None:
            return "its server"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def addresses(dsn: str) -> tuple[Address, ...]:
    """The servers of a DSN, in its order; one without a host when it does not name them itself."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    netloc = parts.netloc.rpartition("@")[2]
    if not netloc:
        hosts = query["host"].split(",") if "host" in query else []
        ports = query.get("port", str(PORT)).split(",")
        pairs = [(host, ports[at if len(ports) > 1 else 0]) for at, host in enumerate(hosts)]
    else:
        pairs = [_host_and_port(each) for each in netloc.split(",")]
    return tuple(Address(unquote(host).strip("[]"), int(port or PORT)) for host, port in pairs if host) or (Address(),)


def _host_and_port(text: str) -> tuple[str, str]:
    """Of `host`, `host:port` or `[::1]:port`."""
    host, colon, port = text.rpartition(":") if ":" in text.rpartition("]")[2] else (text, "", "")
    return host, port if colon else ""


def redact(dsn: str) -> str:
    """The DSN as it may be shown: host and database, the password hidden."""
    parts = urlsplit(dsn)
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, _ = login.partition(":")
    hidden = f"{user}:{REDACTED}" if colon else user
    query = [(key, REDACTED if key in _SECRET_PARAMETERS else value) for key, value in parse_qsl(parts.query)]
    return urlunsplit(parts._replace(netloc=f"{hidden}{at}{hosts}", query=urlencode(query, safe="*/")))


def redact_text(text: str) -> str:
    """Any text, with the password of each PostgreSQL URL in it hidden."""
    return _PASSWORD_IN_TEXT.sub(rf"\1{REDACTED}@", text)


def login_of(dsn: str) -> str | None:
    """The user of a DSN."""
    user = urlsplit(dsn).username
    return unquote(user) if user else None
