"""The suite's own parts: a histogram that sees stalls, a ledger that finds losses, targets that can be missed."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.http1 import ConnectionLost, connect, get, post
from bench.ledger import LedgerError
from bench.load import closed_loop, open_loop
from bench.peers.known import PEERS
from bench.peers.peer import Peer, Promises, lacking
from bench.report import print_comparison, print_run, write_html
from bench.results import Collected, Curve, Figure, Run, ScenarioResult, Target, decode, encode, ratio
from bench.scenarios import SCENARIOS, peers
from bench.scenarios.backlog import backlog_plan
from bench.scenarios.peers import Contender, Load
from bench.scenarios.skew import HOT, skewed_plan
from bench.systems import System
from bench.workload import METER, VEHICLE, Kind, Plan, even_plan, new_readings


class Server:
    """A server that answers each request after its gate opens; in two pieces, to try the parser."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.requests = 0
        self.slam = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                if b"content-length: " in head:
                    await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
                self.requests += 1
                await self.gate.wait()
                if self.slam:
                    return
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi")
                await writer.drain()
                writer.write(b"ne")
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


async def serving(server: Server) -> tuple[asyncio.Server, str]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    return listening, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def reads(url: str, count: int) -> Plan:
    plan = Plan(url)
    for _ in range(count):
        plan.read("/", "read")
    return plan


async def test_the_client_reads_whole_answers() -> None:
    listening, url = await serving(Server())
    async with listening:
        connection = await connect(url)
        assert (await connection.request(get(url, "/"))).body == b"fine"
        assert (await connection.request(post(url, "/", b"abc"))).status == 200
        connection.close()


async def test_a_connection_that_ends_is_an_error_not_a_wait() -> None:
    server = Server()
    server.slam = True
    listening, url = await serving(server)
    async with listening:
        outcome = await closed_loop(reads(url, 10), connections=2, seconds=5)
        assert (outcome.lost, outcome.acknowledged) == (2, [])
        connection = await connect(url)
        with pytest.raises(ConnectionLost):
            await connection.request(get(url, "/"))


async def test_an_open_loop_does_not_spare_a_stalled_server() -> None:
    """Requests that became due during a stall count its length, though they were sent after it."""
    server = Server()
    listening, url = await serving(server)
    async with listening:
        server.gate.clear()
        load = asyncio.create_task(open_loop(reads(url, 100), connections=1, rate=200))
        async with asyncio.timeout(10):
            while not server.requests:
                await asyncio.sleep(0)
        await asyncio.sleep(0.5)  # the stall itself, not a wait for anything
        assert server.requests == 1
        server.gate.set()
        outcome = await load
    assert (outcome.sent, len(outcome.acknowledged)) == (100, 100)
    assert outcome.percentile_ms(50) > 100


async def test_a_closed_loop_sends_a_plan_once() -> None:
    server = Server()
    listening, url = await serving(server)
    async with listening:
        outcome = await closed_loop(reads(url, 30), connections=4, seconds=None)
    assert (outcome.sent, outcome.exhausted, server.requests) == (30, True, 30)
    assert (outcome.all_statuses(), outcome.statuses["read"][200]) == ({200: 30}, 30)
    assert sorted(outcome.acknowledged) == list(range(30))


@pytest.mark.parametrize("kind", [METER, VEHICLE])
def test_readings_are_distinct_and_of_one_length(kind: Kind) -> None:
    readings, others = new_readings(10, kind), new_readings(10, kind)
    keys = {(readings.device(number), readings.moment(number)) for number in range(1_000)}
    assert len(keys) == 1_000
    assert len({len(readings.body(number)) for number in range(0, 1_000, 7)}) == 1
    assert readings.prefix != others.prefix
    assert readings.bodies(range(5, 8)).count(b"\n") == 2
    assert readings.moment(999) < datetime.now(UTC)
    minutes = [(readings.moment(number) - readings.start).total_seconds() / 60 for number in range(50)]
    assert [readings.number(readings.device(n), int(minutes[n])) for n in range(50)] == list(range(50))


def test_plans_know_what_they_send() -> None:
    readings = new_readings(10)
    plan = even_plan("http://x", readings, size=3, count=4)
    assert [n for request in plan.requests for n in request.numbers] == list(range(12))
    assert all(request.payload.count(b"vehicleId") == 3 for request in plan.requests)
    late = backlog_plan("http://x", new_readings(6))
    assert len(late.requests) == 8
    assert {n for request in late.requests for n in request.numbers} == set(range(60_000))
    skewed = skewed_plan("http://x", 2_000)
    hot = [r for r in skewed.requests if r.readings is not None and r.readings.devices == HOT]
    assert 900 < len(hot) < 1_100
    assert len(skewed.workloads()) == 2


def test_a_ratio_is_made_round_by_round() -> None:
    found = Collected()
    for ours, theirs in ((2.0, 1.0), (9.0, 3.0)):
        found.add("ours", "x", ours)
        found.add("theirs", "x", theirs)
    ratios = found.ratio("ours / theirs", "ours", "theirs")
    assert ratios is not None
    assert ratios.values == [2, 3]
    assert found.ratio("ours / none", "ours", "none") is None


def example(value: float) -> Run:
    figures = [Figure("a: ours", "readings/s", [value, value]), ratio("a: ours / theirs", [value, value], [10.0, 10.0])]
    targets = [Target("a: ours / theirs", 0.5, 2), Target("never measured", 1, 2)]
    figures += [Figure(f"a: ours, {part} CPU", "us/reading", [value]) for part in ("router", "PostgreSQL", "generator")]
    curves = [Curve("a: stored", "s", "readings/s", [(0, 1), (1, value)])]
    curves += [Curve("a: latency", "%", "ms", [(0, 1), (50, 2), (99.9, value)])]
    return Run("2026-01-01", {"machine": "m"}, {}, [ScenarioResult("a", figures, targets, 7, ["a note"], curves)])


def test_targets() -> None:
    assert example(6).scenarios[0].failed() == []
    assert [target.figure for target in example(4).scenarios[0].failed()] == ["a: ours / theirs"]
    assert Target("f", 6, 4, higher=False).reached(5)
    assert not Target("f", 6, 4, higher=False).aimed(5)


def test_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = example(4), decode(encode(example(6)))
    console = Console(width=120)
    print_run(before, console)
    print_comparison(before, after, console)
    shown = capsys.readouterr().out
    assert "✗ >= 0.5, aim 2" in shown
    assert "1.500" in shown
    assert "7 readings proved" in shown
    write_html(after, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/svg+xml") == 5
    assert "Targets missed" not in page
    assert "a note" in page
    assert all(f"<td>{figure.name}</td>" in page for figure in after.scenarios[0].figures)


def test_every_scenario_says_what_it_measures() -> None:
    assert all(scenario.text for scenario in SCENARIOS.values())


def test_readings_as_line_protocol() -> None:
    readings = new_readings(2)
    plan = Plan("http://localhost:1", lines_to="/write?db=bench")
    plan.write(readings, range(1, 4))
    head, _, body = plan.requests[0].payload.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /write?db=bench HTTP/1.1\r\n")
    start = int(readings.start.timestamp())
    assert body.decode().split("\n") == [
        f"vehicle,id={readings.prefix}-00000{device} soc=50.25,kwh=0.1234,temp=25.5 {start + minute * 60}000000000"
        for device, minute in ((1, 0), (0, 1), (1, 1))
    ]


def contender(url: str, missing: int = 0) -> Contender:
    """A system that answers everything, and says of so many readings that it did not store them."""

    async def stored(_system: System, _readings: Any) -> int:
        return made.sent - missing

    peer = Peer("odd", Promises("?", "?", "?", "?"), lambda: None, None, "/write", stored)  # type: ignore[arg-type]
    made = Contender(System("odd", url, stores=False), peer)
    return made


async def test_a_system_that_is_faster_than_was_thought_is_measured_again() -> None:
    server = Server()
    listening, url = await serving(server)
    async with listening:
        load = Load("few", 2, 1, 1)
        odd = contender(url)
        assert await odd.flood(load, 0.2) > 0
        assert (odd.sent, odd.stored) == (2 * server.requests, set(range(odd.sent)))
        assert server.requests > 2  # what was encoded first
        assert await odd.prove() == odd.sent


async def test_a_peer_that_lost_something_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "VISIBLE_S", 0.3)
    server = Server()
    listening, url = await serving(server)
    async with listening:
        odd = contender(url, 1)
        await odd.flood(Load("few", 1, 1, 100), 0.1)
        with pytest.raises(LedgerError, match=r"odd acknowledged .* readings and has"):
            await odd.prove()


def test_every_peer_says_what_it_promises_or_why_it_is_not_here() -> None:
    for peer in PEERS:
        assert all(vars(peer.promises).values())
    assert lacking("no-such-program") == "no-such-program is not installed"
