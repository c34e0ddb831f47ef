"""kind and field, as operators give them: what they print, what they refuse, and that nothing is half done then."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.commands import Finished, run_command
from tests.support.routers import router_process
from tests.support.servers import TestCluster, new_cluster

TOML = re.search(r"```toml\n(.*?)```", Path("router/cli/README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(servers: list[str]) -> AsyncIterator[TestCluster]:
    async with new_cluster(servers, shards=3, buckets=4) as made:
        yield made


async def given(cluster: TestCluster, *arguments: object, code: int = 0) -> Finished:
    done = await run_command(*arguments, env={"VOLTROUTE_CATALOG_DSN": cluster.catalog_dsn, "COLUMNS": "80"})
    assert done.code == code, done.err + done.out
    return done


async def names(cluster: TestCluster) -> list[str]:
    return [kind["name"] for kind in (await given(cluster, "kind", "list", "--json")).json["kinds"]]


async def test_a_ready_made_kind_from_its_plan_to_its_retired_field(small: TestCluster) -> None:
    planned = (await given(small, "kind", "create", "charger", "--dry-run")).out
    assert planned.splitlines()[0] == "charger with 8 fields; on 3 shards:"
    assert "nothing was changed" in planned
    assert await names(small) == ["meter", "vehicle"]
    shown = (await given(small, "kind", "show", "charger")).out
    assert "ready-made, not in this cluster; POST /v1/ingest/charger" in shown
    made = await given(small, "kind", "create", "charger")
    assert sorted(made.err.split("\n")[:3]) == [f"s{n} has charger with 8 fields" for n in (1, 2, 3)]
    assert "POST /v1/ingest/charger" in made.out
    assert "is there already" in (await given(small, "kind", "create", "charger", code=3)).err
    added = ("field", "add", "charger", "soc", "--type", "float4", "--unit", "%", "--max", "100", "--role", "level")
    assert (await given(small, *added, "--json")).json["done"] is True
    assert "soc" in (await given(small, "kind", "show", "charger")).out
    assert "(voltroute field add takes it again)" in (await given(small, "field", "retire", "charger", "soc")).out
    retired = (await given(small, "kind", "show", "charger", "--json")).json["retired"]
    assert [field["name"] for field in retired] == ["soc"]
    assert "retired already" in (await given(small, "field", "retire", "charger", "soc", code=3)).err
    await given(small, *added)
    assert (await given(small, "kind", "show", "charger", "--json")).json["retired"] == []
    await given(small, "check")


async def test_a_table_of_fields_fits_a_terminal(small: TestCluster) -> None:
    for name in ("vehicle", "inverter"):
        lines = (await given(small, "kind", "show", name)).out.splitlines()
        table = [line for line in lines if not line.startswith(("voltroute ", f"{name}: "))]
        assert max(map(len, table)) <= 80


async def test_groups_of_a_built_in_kind(small: TestCluster) -> None:
    done = (await given(small, "kind", "extend", "meter", "grid", "export", "--json")).json
    assert [field["name"] for field in done["kind"]["fields"]][3:] == [
        "powerKw",
        "currentA",
        "frequencyHz",
        "kwhExportedAc",
    ]
    assert (await given(small, "kind", "extend", "meter", "grid")).out  # again: all of it is there
    assert "has no group wings; there are" in (await given(small, "kind", "extend", "meter", "wings", code=2)).err
    assert "has no ready-made fields" in (await given(small, "kind", "extend", "charger", "grid", code=2)).err


async def test_the_declaration_of_the_docs_and_what_show_prints_of_it(small: TestCluster, tmp_path: Path) -> None:
    assert TOML is not None
    file = tmp_path / "pump.toml"
    file.write_text(TOML[1], encoding="utf-8")
    await given(small, "kind", "create", file)
    told = (await given(small, "kind", "show", "pump", "--json")).out
    again = tmp_path / "pump.json"
    again.write_text(told.replace("pump", "valve"), encoding="utf-8")
    await given(small, "kind", "create", again)
    other = json.loads((await given(small, "kind", "show", "valve", "--json")).out)
    assert other == json.loads(told.replace("pump", "valve"))
    assert await names(small) == ["meter", "vehicle", "charger", "pump", "valve"]
    done = await given(small, "kind", "resume")
    assert done.out == "every shard has meter, vehicle, charger, pump, valve, as declared\n"


async def test_a_file_of_a_declared_kind_is_posted(small: TestCluster, tmp_path: Path) -> None:
    file = tmp_path / "pumps.csv"
    file.write_text(
        "timestamp,pumpId,flow,mode,kwh\n2026-05-01T00:00:00Z,P-1,1.5,auto,\n2026-05-01T00:05:00Z,P-1,2,off,0.5\n",
        encoding="utf-8",
    )
    async with router_process(small.catalog_dsn, VOLTROUTE_RUNNER="false") as router:
        done = await given(small, "post", file, "--kind", "pump", "--url", router.url)
        assert done.err.startswith("2 accepted, 0 duplicates")
        file.write_text("timestamp,pumpId,flow,mode\n2026-05-01T00:10:00Z,P-1,2,unknown\n", encoding="utf-8")
        refused = await given(small, "post", file, "--kind", "pump", "--url", router.url, code=1)
        assert "/mode: must be one of off, auto, manual" in refused.err  # a word is not taken for a missing value
    wrong = await given(small, "post", file, "--kind", "no kind", "--dry-run", code=2)
    assert "the name of a kind is expected" in wrong.err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name = ", "boat.toml: Invalid value"),
        ("{", "boat.toml: Expecting property name"),
        ('name = "boat"', "boat.toml: Object missing required field `fields`"),
        ('name = "boat"\nfields = [{name = "a b"}]', "field 'a b': a name in JSON is lowerCamelCase"),
        ('name = "boat"\nfields = [{name = "a", colour = 1}]', "unknown field `colour` - at `fields[0]`"),
        ('name = "boat"\nfields = [{name = "a", min = 2, max = 1}]', "its limits are reversed"),
        ('name = "boat"\nid = "meterId"\nfields = [{name = "a"}]', "meterId is the ID of kind meter"),
        ('name = "boat"\nfields = [{name = "vehicleId"}]', "its field vehicleId is the ID of kind vehicle"),
        ('name = "meter"\nfields = [{name = "a"}]', "kind meter is there already"),
    ],
)
async def test_a_declaration_that_cannot_work(small: TestCluster, tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "boat.toml"
    file.write_text(text, encoding="utf-8")
    before = await names(small)
    done = await run_command("kind", "create", file, env={"VOLTROUTE_CATALOG_DSN": small.catalog_dsn})
    assert done.code in {2, 3}
    assert reason in done.err
    assert "Traceback" not in done.err
    assert await names(small) == before


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("field", "add", "boat", "depth"), 3, "there is no kind boat; there are meter, vehicle"),
        (("field", "add", "vehicle", "soc", "--type", "int4"), 3, "soc is there with the type float8"),
        (("field", "add", "vehicle", "depth", "--type", "text"), 2, "a text has a closed list of choices"),
        (("field", "add", "vehicle", "depth", "--min", "2", "--max", "1"), 2, "its limits are reversed"),
        (("field", "add", "vehicle", "kwh", "--role", "energy", "--min", "0"), 2, "the role energy is there twice"),
        (("field", "retire", "vehicle", "soc"), 3, "soc is one of the built-in fields of vehicle"),
        (("field", "retire", "vehicle", "wings"), 3, "vehicle has no field wings"),
        (("kind", "show", "boat"), 3, "there is no kind boat"),
        (("kind", "create", "boat.toml"), 1, "boat.toml: No such file or directory"),
    ],
)
async def test_what_is_refused(small: TestCluster, arguments: tuple[Any, ...], code: int, reason: str) -> None:
    assert reason in (await given(small, *arguments, code=code)).err
