"""What README shows is what happens: its consoles are run against a cluster of today, line by line."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import COMMAND_TIMEOUT_S, up
from tests.support.servers import scratch_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Shown:
    """A command, and the lines that README shows below it."""

    command: str
    output: list[str]


def consoles() -> list[Shown]:
    """What stands behind each `$` of the console blocks; a command goes on while a quote is open, or behind a \\."""
    found: list[Shown] = []
    for block in re.findall(r"^```console\n(.*?)^```", README, re.DOTALL | re.MULTILINE):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            end = 1
            while lines[end - 1].endswith("\\") or "\n".join(lines[:end]).count("'") % 2:
                end += 1
            found.append(Shown("\n".join(lines[:end]), lines[end:]))
    return found


def pattern(line: str) -> str:
    """A shown line as what a line of today must match: any number for a number, anything for an ellipsis."""
    return ".*".join(r"\S+".join(map(re.escape, NUMBER.split(piece))) for piece in line.split("..."))


def matches(shown: list[str], printed: list[str]) -> bool:
    """Whether the printed lines are those that are shown; a line of `...` stands for any lines."""
    text = "".join(r"(?:.*\n)*?" if line.strip() == "..." else pattern(line) + r"\n" for line in shown)
    return re.fullmatch(text, "".join(f"{line}\n" for line in printed)) is not None


def test_the_matcher_can_fail() -> None:
    assert matches(["a 1 b", "...", "c..."], ["a 2,000 b", "x", "y", "c z"])
    assert not matches(["a 1 b"], ["a b"])
    assert not matches(["a"], ["a", "b"])
    assert len(consoles()) >= 9


async def test_the_consoles_of_the_readme() -> None:
    folder = scratch_folder()
    work = folder / "work"
    work.mkdir()
    try:
        async with up(folder / "data", "--shards", "3") as cluster:
            environment = {
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "VOLTROUTE_DATA": str(folder / "data"),
                "VOLTROUTE_URL": cluster.url,
                "COLUMNS": "80",
            }
            for shown in consoles():
                command = shown.command.replace("localhost:8080", cluster.url.removeprefix("http://"))
                process = await asyncio.create_subprocess_exec(
                    "bash", "-c", command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    out, _ = await process.communicate()
                assert process.returncode == 0, out.decode()
                assert matches(shown.output, out.decode().splitlines()), f"$ {shown.command}\n{out.decode()}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_wheel_holds_what_it_needs(tmp_path: Path) -> None:
    """`pip wheel`, and the command runs from what is in it: schema, presets and all."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "tests", "bench", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(pip, check=True, timeout=COMMAND_TIMEOUT_S)
    (wheel,) = tmp_path.glob("voltroute-*.whl")
    assert f"dist/{wheel.name}" in README
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    code = (
        "import router, shards.postgres.migrate as m; from router.files.presets import PRESETS; "
        "print(router.__file__, len(m.load('shard')), len(m.load('catalog')), len(PRESETS))"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    where, *counts = ran.stdout.split()
    assert where.startswith(str(unpacked))
    files = [len(list((ROOT / "migrations" / kind).glob("*.sql"))) for kind in ("shard", "catalog")]
    assert [int(count) for count in counts[:2]] == files
    assert int(counts[2]) >= 20


@pytest.mark.parametrize("command", ["voltroute up --shards 3 --data ./mine", "make demo", "make test"])
def test_what_is_not_run_here_is_shown(command: str) -> None:
    """They are run by test_up, and by whoever runs this."""
    assert f"```sh\n{command}\n```" in README or f"`{command}`" in README
