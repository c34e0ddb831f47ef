"""export: readings of a router into a file."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import httpx2
import msgspec
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from router.cli.sending import URL_DEFAULT, KeyOption, UrlOption, key_of
from router.cli.show.output import errors, tell
from router.cli.target import JsonOption
from router.files.written import Form, check_form, convert, note_fields
from router.fleet.client import RouterClient, RouterRefused
from router.fleet.parts import parts
from shards.errors import ClusterError, InvalidArgument

PART: Final = ".part"  # behind the name: lines that are fetched, until all are
STATE: Final = ".part.json"  # how far they go

_Plural = Annotated[str, typer.Argument(help="Devices of a kind: meters, vehicles, ...", show_default=False)]
_Out = Annotated[Path, typer.Argument(help="The file to make.", show_default=False)]
_Device = Annotated[str | None, typer.Option(help="One device; else all of the key's tenant.", show_default=False)]
_From = Annotated[
    str | None, typer.Option("--from", help="After this time, as 2026-05-01T00:00:00Z.", show_default=False)
]
_To = Annotated[str | None, typer.Option("--to", help="Up to this time; else up to now.", show_default=False)]
_Form = Annotated[
    Form | None,
    typer.Option("--format", help="Else by the file's name: .csv, .parquet, or lines of JSON.", show_default=False),
]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on where an export into the file was interrupted.")]


class _State(msgspec.Struct):
    """What of an export is in its part file: so many bytes, of readings with these fields; `next` is to be fetched."""

    first: str
    next: str | None
    size: int = 0
    readings: int = 0
    fields: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass
class _Export:
    """An export into a file, and the two files beside it while it is not whole."""

    out: Path
    state: _State

    @property
    def part(self) -> Path:
        return self.out.with_name(self.out.name + PART)

    @property
    def noted(self) -> Path:
        return self.out.with_name(self.out.name + STATE)

    async def fetch(self, client: RouterClient) -> None:
        """All parts that are missing. Lines are on disk before the state says so: what is behind it is cut off."""
        await client.get("/livez")  # a wrong URL fails here, before there is a file
        self._note()
        with self.part.open("ab") as file:
            file.truncate(self.state.size)
            if self.state.next is None:
                return
            async for part in parts(client, self.state.next):
                file.write(part.lines)
                file.flush()
                os.fsync(file.fileno())
                self.state.size += len(part.lines)
                self.state.readings += note_fields(part.lines, self.state.fields)
                self.state.next = part.next
                self._note()

    def _note(self) -> None:
        """Whole, or as it was before."""
        fresh = self.noted.with_name(self.noted.name + ".new")
        fresh.write_bytes(msgspec.json.encode(self.state))
        fresh.replace(self.noted)

    def forget_nothing(self) -> None:
        """When nothing was fetched there is nothing to go on from."""
        if not self.state.size:
            self.part.unlink(missing_ok=True)
            self.noted.unlink(missing_ok=True)

    def finish(self, form: Form) -> None:
        """The file appears under its name when all of it is there."""
        made = self.part
        if form is not Form.NDJSON:
            made = self.out.with_name(f"{self.out.name}.{form}.new")
            convert(self.part, made, form, self.state.fields)
        made.replace(self.out)
        self.part.unlink(missing_ok=True)
        self.noted.unlink(missing_ok=True)


def export(
    plural: _Plural,
    out: _Out,
    device: _Device = None,
    start: _From = None,
    end: _To = None,
    form: _Form = None,
    resume: _Resume = False,
    url: UrlOption = URL_DEFAULT,
    key: KeyOption = None,
    json: JsonOption = False,
) -> None:
    """Readings as they were sent, by device and time, into a file; what is exported can be posted again.

    Interrupted, it leaves FILE.part beside the file, and --resume goes on from there.
    """
    form = form or _form_of(out)
    check_form(form)
    wanted = {"device": device, "from": start, "to": end}
    query = httpx2.QueryParams({name: value for name, value in wanted.items() if value is not None})
    made = _begin(out, f"/v1/export/{plural}?{query}", resume=resume)
    try:
        asyncio.run(_fetch(made, url, key_of(key)))
    except RouterRefused as error:
        made.forget_nothing()
        raise ClusterError(str(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ConnectionError) as error:
        made.forget_nothing()
        message = f"{url}: {error or type(error).__name__}" + ("; --resume goes on" if made.noted.exists() else "")
        raise ClusterError(message) from error
    made.finish(form)
    told: dict[str, Any] = {"file": str(out), "format": form, "readings": made.state.readings}
    tell(told, f"{out}: {made.state.readings:,} readings", json=json)


def _form_of(out: Path) -> Form:
    known = {".csv": Form.CSV, ".parquet": Form.PARQUET}
    return known.get(out.suffix.lower(), Form.NDJSON)


def _begin(out: Path, path: str, *, resume: bool) -> _Export:
    """A new export, or one that was interrupted. InvalidArgument when that is not what was asked for."""
    made = _Export(out, _State(path, path))
    if out.exists():
        raise InvalidArgument(f"{out} is there already: remove it, or name another file")
    if not resume:
        if made.noted.exists():
            raise InvalidArgument(f"an export into {out} was interrupted: --resume goes on, or remove {made.noted}")
        return made
    try:
        state = msgspec.json.decode(made.noted.read_bytes(), type=_State)
    except FileNotFoundError:
        raise InvalidArgument(f"no export into {out} was interrupted: leave --resume out") from None
    except msgspec.DecodeError:
        raise InvalidArgument(f"{made.noted} is not what an export leaves: remove it, and begin anew") from None
    if state.first != path:
        raise InvalidArgument(f"{out} was begun with other options ({state.first}): use them, or another file")
    return _Export(out, state)


async def _fetch(made: _Export, url: str, key: str | None) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(made.out.name, total=None)
        async with RouterClient(url, key) as client:
            fetching = asyncio.create_task(made.fetch(client))
            while not fetching.done():
                await asyncio.wait([fetching], timeout=0.2)
                bar.update(task, completed=made.state.readings)
            await fetching
