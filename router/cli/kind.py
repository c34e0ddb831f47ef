"""kind and field: what devices may send, declared while the cluster runs."""

import json as jsonlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from router.cli.catalog import with_catalog
from router.cli.show.output import errors, print_json, print_table, say
from router.cli.target import DataOption, JsonOption
from shards import declaration
from shards.catalog import kinds
from shards.catalog.database import Catalog
from shards.catalog.kinds import Declared
from shards.clock import deadline_in
from shards.declaration import RANGES, FieldDeclaration
from shards.errors import InvalidArgument, Refused
from shards.kinds import Direction, Field, Kind, Role, Type
from shards.operations import kinds as operation
from shards.operations.kinds import OnShard
from shards.readymade import EXTENSIONS, READY_MADE

TIMEOUT_S: Final = 10.0
LIMITS_SHOWN_MAX: Final = 24
kind_app = typer.Typer(help="Kinds of device: what they may send.", no_args_is_help=True)
field_app = typer.Typer(help="Fields of a kind.", no_args_is_help=True)
_Name = Annotated[str, typer.Argument(help="The kind.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]


@kind_app.command("list")
def list_kinds(data: DataOption = None, json: JsonOption = False) -> None:
    """All kinds of the cluster."""
    found = with_catalog(data, lambda catalog: kinds.declared(catalog, deadline_in(TIMEOUT_S)))
    if json:
        print_json({"kinds": [_as_json(each) for each in found]})
        return
    rows = [
        (each.whole.name, f"/v1/ingest/{each.whole.path}", each.whole.id_name, len(each.kind.fields), _state(each))
        for each in found
    ]
    print_table(("kind", "path", "ID", "fields", "state"), rows)
    ready = sorted(READY_MADE.keys() - {each.whole.name for each in found})
    if ready:
        say(f"ready-made: {', '.join(ready)}  (voltroute kind create {ready[0]})")


def _state(declared: Declared) -> str:
    return "not on every shard yet" if declared.is_open else "active"


def _as_json(declared: Declared) -> dict[str, Any]:
    told = declaration.written(declared.kind)
    retired = [{**declaration.written_field(each), "retired": str(each.retired)} for each in declared.kind.retired]
    adding = [declaration.written_field(each) for each in declared.adding]
    return {**told, "state": declared.state.value, "adding": adding, "retired": retired}


@kind_app.command("show")
def show(name: _Name, data: DataOption = None, json: JsonOption = False) -> None:
    """One kind and its fields; also one that is ready-made. With --json as `kind create` takes it."""

    async def work(catalog: Catalog) -> Declared | None:
        try:
            return await operation.find(catalog, name)
        except Refused:
            if name not in READY_MADE:
                raise
            return None

    found = with_catalog(data, work)
    if json:
        print_json(declaration.written(READY_MADE[name]) if found is None else _as_json(found))
        return
    kind = READY_MADE[name] if found is None else found.kind
    say(f"{kind.name}: {kind.description}")
    state = _state(found) if found else "ready-made, not in this cluster"
    say(f"{state}; POST /v1/ingest/{kind.path}, /v1/{kind.plural}")
    _print_fields([*kind.stored, *(found.adding if found else ())], kind.id_name)
    for group, fields in EXTENSIONS.get(name, {}).items():
        more = [field.name for field in fields if field.name not in {each.name for each in kind.stored}]
        if more:
            say(f"voltroute kind extend {name} {group}: {', '.join(more)}")


def _print_fields(fields: Sequence[Field], id_name: str) -> None:
    rows: list[tuple[str, str, str, str, str]] = [(id_name, "text", "", "", "required")]
    for field in fields:
        role = "" if field.role is Role.NONE else field.role.value
        if field.direction is Direction.OUT:
            role += " out"
        state = f"retired {field.retired}" if field.retired else "required" if field.required else ""
        rows.append((field.name, field.type.value, _limits(field), role, state))
    print_table(("field", "type", "limits", "role", ""), rows)


def _limits(field: Field) -> str:
    if field.choices:
        text = " ".join(field.choices)
        return text if len(text) <= LIMITS_SHOWN_MAX else f"one of {len(field.choices)} words"
    if field.minimum is None and field.maximum is None:
        return field.unit
    natural = RANGES.get(field.type, (None, None))
    low, high = ("" if each is None or each in natural else f"{each:g}" for each in (field.minimum, field.maximum))
    return f"{low} to {high} {field.unit}".strip() if low or high else field.unit


@kind_app.command("create")
def create(
    file: Annotated[
        str, typer.Argument(help="A declaration (TOML; JSON as of `kind show --json`), or a ready-made kind.")
    ],
    dry_run: _DryRun = False,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Make a kind on all shards, while the cluster runs. Nothing is ever dropped: look at --dry-run first."""
    kind = _declared(file)

    async def work(catalog: Catalog) -> list[OnShard]:
        await operation.check_new(catalog, kind)
        planned = await operation.plan(catalog, kind, is_new=True)
        _tell_plan(f"{kind.name} with {len(kind.fields)} fields", planned, json=json)
        if not dry_run:
            await operation.create(catalog, kind, _progress)
        return planned

    _end(with_catalog(data, work), kind, json=json, dry_run=dry_run)


def _declared(file: str) -> Kind:
    """The kind of a file, or a ready-made one. InvalidArgument names what is wrong, and where."""
    path = Path(file)
    if not path.exists() and file in READY_MADE:
        return READY_MADE[file]
    text = path.read_bytes()
    try:
        held = jsonlib.loads(text) if text.lstrip()[:1] == b"{" else tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{file}: {error}") from None
    if isinstance(held, dict):
        held = {name: value for name, value in held.items() if name not in {"state", "adding", "retired"}}
    try:
        return declaration.read(held)
    except InvalidArgument as error:
        raise InvalidArgument(f"{file}: {error}") from None


@kind_app.command("extend")
def extend(
    name: Annotated[str, typer.Argument(help="meter or vehicle.")],
    groups: Annotated[list[str], typer.Argument(help="Groups of ready-made fields; `kind show` lists them.")],
    dry_run: _DryRun = False,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Add ready-made groups of optional fields to a built-in kind."""
    known = EXTENSIONS.get(name)
    if known is None:
        raise InvalidArgument(f"{name[:64]} has no ready-made fields; these have: {', '.join(EXTENSIONS)}")
    wrong = [group for group in groups if group not in known]
    if wrong:
        raise InvalidArgument(f"{name} has no group {wrong[0][:64]}; there are {', '.join(known)}")
    _add(name, [field for group in groups for field in known[group]], data, dry_run=dry_run, json=json)


@kind_app.command("resume")
def resume(data: DataOption = None, json: JsonOption = False) -> None:
    """Finish changes that were interrupted, and give shards what they lack of what is declared."""
    names = with_catalog(data, lambda catalog: operation.resume(catalog, _progress))
    if json:
        print_json({"kinds": names})
    else:
        say(f"every shard has {', '.join(names)}, as declared")


@field_app.command("add")
def add(
    kind: _Name,
    name: Annotated[str, typer.Argument(help="Its name in JSON, as in powerKw.")],
    type_: Annotated[Type, typer.Option("--type", help="Of its values.")] = Type.FLOAT8,
    unit: Annotated[str, typer.Option(help="As UCUM writes it, or the field's usual one.")] = "",
    least: Annotated[float | None, typer.Option("--min", help="The least value.")] = None,
    most: Annotated[float | None, typer.Option("--max", help="The largest value.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="Of a text: a word that it may be. Repeatable.")] = None,
    role: Annotated[Role, typer.Option(help="What it means to sums.")] = Role.NONE,
    direction: Annotated[Direction, typer.Option(help="Of an energy.")] = Direction.IN,
    status: Annotated[bool, typer.Option(help="Whether a device's status has it.")] = True,
    column: Annotated[str, typer.Option(help="Its name in SQL [snake_case of the name].")] = "",
    description: Annotated[str, typer.Option(help="For the API's document.")] = "",
    dry_run: _DryRun = False,
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Add an optional field to a kind on all shards, or take a retired one again."""
    declared = FieldDeclaration(
        name,
        type_,
        unit,
        least,
        most,
        choice or [],
        role,
        direction,
        status=status,
        column=column,
        description=description,
    )
    _add(kind, [declared.field()], data, dry_run=dry_run, json=json)


def _add(name: str, fields: Sequence[Field], data: Path | None, *, dry_run: bool, json: bool) -> None:
    async def work(catalog: Catalog) -> tuple[list[OnShard], Kind]:
        kind = await operation.check_added(catalog, name, fields)
        planned = await operation.plan(catalog, kind, is_new=False)
        _tell_plan(f"{name}: {', '.join(field.name for field in fields)}", planned, json=json)
        if not dry_run:
            await operation.add(catalog, name, fields, _progress)
        return planned, (await operation.find(catalog, name)).whole

    planned, kind = with_catalog(data, work)
    _end(planned, kind, json=json, dry_run=dry_run)


@field_app.command("retire")
def retire(
    kind: _Name,
    name: Annotated[str, typer.Argument(help="Its name in JSON.")],
    data: DataOption = None,
    json: JsonOption = False,
) -> None:
    """Take a field no more: readings with it are refused. What is stored stays, and is read."""
    with_catalog(data, lambda catalog: operation.retire(catalog, kind, name))
    if json:
        print_json({"kind": kind, "field": name, "state": "retired"})
    else:
        say(f"{kind}: readings with {name} are refused from now on (voltroute field add takes it again)")


def _tell_plan(what: str, planned: Sequence[OnShard], *, json: bool) -> None:
    if json:
        return
    say(f"{what}; on {len(planned)} shards:")
    print_table(
        ("shard", "buckets", "tables", ""),
        [(each.name, each.buckets, each.tables, "does not answer" if each.away else "") for each in planned],
    )


def _progress(text: str) -> None:
    errors.print(text, markup=False, soft_wrap=True)


def _end(planned: Sequence[OnShard], kind: Kind, *, json: bool, dry_run: bool) -> None:
    if json:
        plan = [vars(each) for each in planned]
        print_json({"kind": declaration.written(kind), "plan": plan, "done": not dry_run})
    elif dry_run:
        say("nothing was changed")
    else:
        say(f"routers take it within their map_poll_s: POST /v1/ingest/{kind.path}")
