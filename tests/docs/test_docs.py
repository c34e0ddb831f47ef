"""Docs that list things list what the code has: settings, metrics, problems, commands, states, migrations, rooms."""

import re
from pathlib import Path

import pytest

from router.settings import PREFIX, Settings
from router.wire.problems import PROBLEMS
from shards.moves.phases import RECORD_FOLLOWING, Phase, RebalanceState, Recorded
from shards.shard import ShardState
from tests.docs.listing import command_names, metric_names

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROUTER = (ROOT / "router/README.md").read_text()
SHARDS = (ROOT / "shards/README.md").read_text()
COMMANDS = (ROOT / "router/cli/README.md").read_text()


def table(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table after a heading, without its header."""
    rows = []
    for line in text.partition(f"\n{heading}\n")[2].splitlines():
        if line.startswith("|"):
            rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
        elif rows:
            break
    return rows[2:]


def test_settings() -> None:
    listed = {row[0]: (row[1], row[2]) for row in table(ROUTER, "## Settings")}
    assert list(listed) == [PREFIX + name.upper() for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        default, meaning = listed[PREFIX + name.upper()]
        assert meaning == field.description
        shown = "" if field.default is None else str(getattr(field.default, "value", field.default)).lower()
        assert default.replace(",", "") == shown.removesuffix(".0")


def test_metrics() -> None:
    assert [(row[0], row[1]) for row in table(ROUTER, "## Metrics")] == [
        (name, ", ".join(labels)) for name, labels in metric_names()
    ]


def test_problems() -> None:
    assert [(row[0], int(row[1])) for row in table(ROUTER, "## Problems")] == [
        (problem.slug, problem.status) for problem in PROBLEMS.values()
    ]


def test_commands() -> None:
    listed: set[str] = set()
    for cell, _ in table(COMMANDS, "## Commands"):
        group = ""
        for words in re.findall(r"[\w-]+(?: [\w-]+)?", cell.replace("FILE", "")):
            first, _, second = words.strip().partition(" ")
            group = first if second else group
            listed.add(words.strip() if second or not group else f"{group} {first}")
    assert listed == command_names()


@pytest.mark.parametrize("states", [Phase, Recorded, RebalanceState, ShardState])
def test_states_are_named(states: type[Phase]) -> None:
    text = SHARDS.partition("## 7. Online moves")[2]
    missing = [state.value for state in states if not re.search(rf"\b{state.value}\b", text)]
    assert missing == []


def test_the_drawn_states_of_a_record_are_the_legal_ones() -> None:
    drawing = SHARDS.partition("source   copying")[2].partition("```")[0]
    assert all(state.value in f"source copying {drawing}" for state in Recorded)
    assert {state for following in RECORD_FOLLOWING.values() for state in following} <= set(Recorded)


def test_migrations() -> None:
    text = (ROOT / "migrations/README.md").read_text()
    files = sorted(ROOT.glob("migrations/*/*.sql"))
    assert re.findall(r"\| `((?:catalog|shard)/\d{4}_\w+)` \|", text) == [
        f"{file.parent.name}/{file.stem}" for file in files
    ]


@pytest.mark.parametrize("package", ["router", "shards"])
def test_rooms(package: str) -> None:
    text = ROUTER if package == "router" else SHARDS
    rooms = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / package).glob("*.py") if path.stem != "__init__"}
    named = {word.strip("/") for row in table(text, "## Rooms") for word in re.findall(r"[\w/]+", row[0])}
    assert rooms | modules <= named


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_links_lead_somewhere() -> None:
    for file in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("router/*/README.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", file.read_text()):
            assert (file.parent / target).exists(), (file, target)
