"""Which cluster a command is about: --data, VOLTROUTE_CATALOG_DSN, VOLTROUTE_DATA, or the default folder."""

import os
import sys
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer
from pydantic import SecretStr, ValidationError

from router import log
from router.settings import PREFIX, LogFormat, Settings
from shards.embedded.lock import read_holder
from shards.embedded.state import CATALOG, State, load_state
from shards.errors import InvalidArgument, MachineError, NoCluster

_ROOT_DEFAULT: Final = Path("/var/lib/voltroute/default")
DEFAULT_SHOWN: Final = str(_ROOT_DEFAULT) if os.geteuid() == 0 else "~/.local/share/voltroute/default"
DataOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help=f"Folder of an embedded cluster  [{PREFIX}DATA, or {DEFAULT_SHOWN}].",
        show_default=False,
    ),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
SecretsOption: TypeAlias = Annotated[bool, typer.Option("--show-secrets", help="Do not hide passwords.")]


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment and the command line (None: not given). Usage error when one is invalid."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        message = f"{PREFIX}{name.upper()}: {first['msg']}"
        raise typer.BadParameter(message) from None


def configure_log(settings: Settings) -> None:
    """Logs as the settings say."""
    formats = {LogFormat.JSON: False, LogFormat.CONSOLE: True, LogFormat.AUTO: None}
    log.configure(settings.log_level, console=formats[settings.log_format])


def with_redis(settings: Settings) -> Settings:
    """The settings with Redis' URL itself, where they say where it is."""
    if settings.redis_url is None or not settings.redis_url.get_secret_value():
        return settings
    url = text_of(settings.redis_url.get_secret_value(), "URL")
    return settings.model_copy(update={"redis_url": SecretStr(url)})


def dsn_of(text: str) -> str:
    """A DSN, or where it is: `@FILE`, `env:NAME`, `-` for standard input: passwords stay out of argv."""
    return text_of(text, "DSN")


def text_of(text: str, what: str) -> str:
    """A text, or where it is; `what` it should be. InvalidArgument when there is none."""
    try:
        if text == "-":
            found = sys.stdin.readline()
        elif text.startswith("@"):
            found = Path(text[1:]).read_text(encoding="utf-8")
        elif text.startswith("env:"):
            found = os.environ.get(text[4:], "")
        else:
            return text
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise InvalidArgument(f"{text[1:]}: {reason}") from None
    if not found.strip():
        raise InvalidArgument(f"{text}: there is no {what}")
    return found.strip()


def default_data() -> Path:
    """Where an embedded cluster lies when nobody says: for root where PostgreSQL's account can enter, too."""
    if os.geteuid() == 0:
        return _ROOT_DEFAULT
    try:
        base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    except RuntimeError:  # an account of a container, that no file knows
        message = f"this account has no home folder: say --data DIR, or set {PREFIX}DATA or {PREFIX}CATALOG_DSN"
        raise MachineError(message) from None
    return Path(base) / "voltroute" / "default"


def data_folder(data: Path | None, settings: Settings) -> Path:
    """The folder of the embedded cluster to start or stop."""
    return data or (Path(settings.data) if settings.data else default_data())


def find_catalog(data: Path | None, settings: Settings) -> str:
    """DSN of the catalog that a command is about. NoCluster when there is none, or it is not running."""
    if data is None and settings.catalog_dsn is not None:
        return dsn_of(settings.catalog_dsn.get_secret_value())
    folder = data_folder(data, settings)
    state = _running_state(folder)
    if state is None:
        message = f"no cluster in {folder}: use --data DIR or {PREFIX}CATALOG_DSN, or start one with `voltroute up`"
        raise NoCluster(message)
    return state.dsn(CATALOG)


def _running_state(folder: Path) -> State | None:
    try:
        state = load_state(folder)
    except PermissionError:
        message = f"no permission to read {folder}"
        raise NoCluster(message) from None
    if state is not None and read_holder(folder) is None:
        message = f"the cluster in {folder} is not running: start it with `voltroute up --data {folder}`"
        raise NoCluster(message)
    return state
