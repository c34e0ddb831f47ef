"""Showing moves: a live table on a terminal, a line for each change elsewhere."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from router.cli.show.output import console, errors
from router.reads.rebalance import status
from router.wire.answers import MoveInfo, RebalanceStatus
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, ShardError
from shards.moves.phases import ENDED, Phase, Rebalance

POLL_S: Final = 0.3
SHOWN_MAX: Final = 20
_ENDED: Final = {phase.value for phase in ENDED}
# Roughly how far a move is in each phase, beside the share of its rows.
_SHARES: Final = {Phase.PLANNED: 0.0, Phase.CATCHUP: 0.85, Phase.VERIFY: 0.9, Phase.FENCE: 0.95, Phase.CUTOVER: 0.98}


async def watch_moves(catalog: Catalog) -> str:
    """Show the newest rebalance until it ends; returns its state. A catalog that is away is waited for."""
    if not errors.is_terminal:
        return await _follow_lines(catalog)
    with Live(Text("..."), console=errors, refresh_per_second=8, transient=False) as live:
        while True:
            try:
                answer = await status(catalog, deadline_in(5), reasons=True)
            except (ShardError, ClusterError) as error:
                live.update(Text(f"the catalog does not answer: {error}", style="red"))
            else:
                live.update(_view(answer))
                if answer.rebalance is None or answer.rebalance.ended_at is not None:
                    return answer.rebalance.state if answer.rebalance else "done"
            await asyncio.sleep(POLL_S)


async def _follow_lines(catalog: Catalog) -> str:
    seen: dict[int, str] = {}
    while True:
        try:
            answer = await status(catalog, deadline_in(5), reasons=True)
        except (ShardError, ClusterError) as error:
            errors.print(f"the catalog does not answer: {error}", markup=False)
            await asyncio.sleep(POLL_S * 4)
            continue
        for move in answer.moves:
            if seen.get(move.move_id) != move.phase:
                seen[move.move_id] = move.phase
                errors.print(_line(move), markup=False, soft_wrap=True)
        if answer.rebalance is None or answer.rebalance.ended_at is not None:
            return answer.rebalance.state if answer.rebalance else "done"
        await asyncio.sleep(POLL_S)


def _line(move: MoveInfo) -> str:
    when = move.updated_at.astimezone(UTC).strftime("%H:%M:%S")
    note = f"  {move.last_error}" if move.last_error else ""
    return f"{when}  bucket {move.bucket}  {move.source} -> {move.target}  {move.phase}  {_rows(move)}{note}"


def _rows(move: MoveInfo) -> str:
    total = f" of about {move.rows_total:,}" if move.rows_total else ""
    return f"{move.rows_done + move.delta_rows:,}{total} readings"


def _done_share(move: MoveInfo) -> float:
    if move.phase in _ENDED or move.phase in {Phase.CLEANUP, Phase.ROLLBACK_CLEANUP}:
        return 1.0
    if move.phase == Phase.BACKFILL:
        return 0.8 * min(move.bytes_done / move.bytes_total, 1.0) if move.bytes_total else 0.0
    return _SHARES.get(Phase(move.phase), 0.5)


def _rate(move: MoveInfo) -> str:
    seconds = move.copy_s or ((datetime.now(UTC) - move.started_at).total_seconds() if move.started_at else 0.0)
    return f"{move.rows_done / seconds:,.0f}/s" if seconds > 0 and move.rows_done else "-"


def _table(moves: Sequence[MoveInfo], *, bars: bool) -> Table:
    columns = ["bucket", "from", "to", "phase", "readings", "rate", "lag", "pause", "retries"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in {"from", "to", "phase"} else "right")
    if bars:
        table.add_column("", width=20)
    table.add_column("", overflow="fold")
    for move in moves:
        cells: list[Any] = [
            str(move.bucket),
            move.source,
            move.target,
            move.phase,
            _rows(move).removesuffix(" readings"),
            _rate(move),
            f"{move.lag_s:.1f} s" if move.lag_s is not None else "-",
            f"{move.pause_ms:.0f} ms" if move.pause_ms is not None else "-",
            str(move.retries),
        ]
        if bars:
            cells.append(ProgressBar(total=1.0, completed=_done_share(move), width=20))
        table.add_row(*cells, Text(move.last_error or "", style="red"))
    return table


def _head(answer: RebalanceStatus) -> str:
    if answer.rebalance is None:
        return "no rebalance was ever started"
    ended = [move for move in answer.moves if move.phase in _ENDED]
    runner = f"runner {answer.runner.name}" if answer.runner else "no runner"
    note = f"  {answer.rebalance.note}" if answer.rebalance.note else ""
    idle = f"  ({answer.idle})" if answer.idle else ""
    return (
        f"rebalance {answer.rebalance.rebalance_id} {answer.rebalance.reason}: {answer.rebalance.state}, "
        f"{len(ended)} of {len(answer.moves)} moves ended, {runner}{note}{idle}"
    )


def _view(answer: RebalanceStatus) -> Group:
    """The moves under way first, then the next ones and the last ones, as many as fit."""
    order = sorted(answer.moves, key=lambda m: (m.phase in _ENDED, m.phase == Phase.PLANNED, m.move_id))
    left_out = max(len(order) - SHOWN_MAX, 0)
    more = [Text(f"and {left_out} more", style="dim")] if left_out else []
    return Group(Text(_head(answer), style="bold"), _table(order[:SHOWN_MAX], bars=True), *more)


def print_status(answer: RebalanceStatus) -> None:
    """The same once, on stdout."""
    console.print(_head(answer), markup=False, soft_wrap=True)
    if answer.moves:
        console.print(_table(answer.moves, bars=False))


def closing_line(found: Rebalance, moves: Sequence[Mapping[str, Any]], written: int) -> str:
    """What a rebalance did, in one line. Only rows that were compared on both sides count as verified."""
    seconds = ((found.ended_at or datetime.now(UTC)) - found.created_at).total_seconds()
    done = [move for move in moves if move["phase"] == Phase.DONE]
    retries = sum(move["retries"] for move in moves)
    pause = max((move["pause_ms"] or 0.0 for move in moves), default=0.0)
    verified = sum(move["rows_verified"] or 0 for move in done)
    whole = "0 acknowledged readings missing" if len(done) == len(moves) else f"{len(moves) - len(done)} moves not done"
    return (
        f"{found.state}: {len(done)} moves in {seconds:,.1f} s; {written:,} readings written meanwhile; "
        f"{retries} errors{', each tried again' if retries else ''}; longest write pause {pause:.0f} ms; {whole} "
        f"(verified: {verified:,} readings compared on both shards)"
    )
