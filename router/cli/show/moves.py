"""Showing moves: a live table on a terminal, a line for each change elsewhere."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from router.cli.show.output import Redraw, bar, console, errors, print_json
from router.reads.rebalance import status
from router.wire.answers import MoveInfo, RebalanceStatus
from shards.catalog.database import Catalog
from shards.clock import deadline_in
from shards.errors import ClusterError, ShardError
from shards.moves.phases import ENDED, Phase, Rebalance

POLL_S: Final = 0.3
SHOWN_MAX: Final = 20
WIDE: Final = 110  # columns of a terminal from which on all of a move is shown
NARROW_COLUMNS: Final = 7
_ENDED: Final = {phase.value for phase in ENDED}
_OVER: Final = {Phase.CLEANUP, Phase.DONE}
# Roughly how far a move is in each phase, beside the share of its rows.
_SHARES: Final = {Phase.PLANNED: 0.0, Phase.CATCHUP: 0.85, Phase.VERIFY: 0.9, Phase.FENCE: 0.95, Phase.CUTOVER: 0.98}


async def watch_moves(catalog: Catalog, *, json: bool = False) -> str:
    """Show the newest rebalance until it ends; returns its state. A catalog that is away is waited for.

    `json`: a document on stdout for each change of a move.
    """
    if json or not errors.is_terminal:
        return await _follow_lines(catalog, json=json)
    with Live(Text("..."), console=errors, auto_refresh=False, transient=False) as live:
        draw = Redraw(live)
        while True:
            try:
                answer = await status(catalog, deadline_in(5), reasons=True)
            except (ShardError, ClusterError) as error:
                draw(Text(f"the catalog does not answer: {error}", style="red"))
            else:
                draw(_view(answer, errors.width))
                if answer.rebalance is None or answer.rebalance.ended_at is not None:
                    return answer.rebalance.state if answer.rebalance else "done"
            await asyncio.sleep(POLL_S)


async def _follow_lines(catalog: Catalog, *, json: bool) -> str:
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
                if json:
                    print_json(msgspec.to_builtins(move))
                else:
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


def _cells(move: MoveInfo, bar_width: int) -> dict[str, str]:
    """Column -> text, the most important first."""
    return {
        "bucket": str(move.bucket),
        "from": move.source,
        "to": move.target,
        "phase": move.phase,
        "done": bar(_done_share(move), bar_width),
        "readings": f"{move.rows_done + move.delta_rows:,}",
        "pause": f"{move.pause_ms:.0f} ms" if move.pause_ms is not None else "-",
        "of about": f"{move.rows_total:,}" if move.rows_total else "-",
        "rate": _rate(move),
        "lag": f"{move.lag_s:.1f} s" if move.lag_s is not None else "-",
        "retries": str(move.retries),
    }


def _table(moves: Sequence[MoveInfo], width: int) -> Group:
    """As many columns as the terminal has room for; what went wrong has lines of its own."""
    names = list(_cells(moves[0], 0)) if moves else []
    wide = width >= WIDE
    shown = names if wide else names[:NARROW_COLUMNS]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(column, justify="left" if column in {"from", "to", "phase", "done"} else "right", no_wrap=True)
    for move in moves:
        cells = _cells(move, 20 if wide else 10)
        table.add_row(*(cells[name] for name in shown))
    troubles = [
        Text(f"bucket {move.bucket}, tried {move.retries} times: {move.last_error}", style="red")
        for move in moves
        if move.last_error and move.phase not in _ENDED
    ]
    return Group(table, *troubles)


def _kept(answer: RebalanceStatus) -> str:
    """What a rebalance waits for once everything was handed over."""
    rebalance, moves = answer.rebalance, answer.moves
    over = [move for move in moves if move.phase in _OVER]
    if rebalance is None or rebalance.ended_at is not None or not moves:
        return ""
    text = f"{len(over)} of {len(moves)} handed over"
    last = max((move.cut_over_at for move in over if move.cut_over_at is not None), default=None)
    if len(over) == len(moves) and last is not None and rebalance.keep_s:
        until = (last + timedelta(seconds=rebalance.keep_s)).astimezone(UTC)
        text += f"; old copies are kept until {until:%H:%M:%S} UTC, for a rollback"
    return text + "; Ctrl-C only stops watching"


def head(answer: RebalanceStatus) -> str:
    """The newest rebalance in one line."""
    if answer.rebalance is None:
        return "no rebalance was ever started"
    ended = [move for move in answer.moves if move.phase in _ENDED]
    runner = f"runner {answer.runner.name}" if answer.runner and answer.runner.leads else "no runner"
    note = f"  {answer.rebalance.note}" if answer.rebalance.note else ""
    idle = f"  ({answer.idle})" if answer.idle else ""
    return (
        f"rebalance {answer.rebalance.rebalance_id} {answer.rebalance.reason}: {answer.rebalance.state}, "
        f"{len(ended)} of {len(answer.moves)} moves ended, {runner}{note}{idle}"
    )


def _view(answer: RebalanceStatus, width: int) -> Group:
    """The moves under way first, then the next ones and the last ones, as many as fit."""
    order = sorted(answer.moves, key=lambda m: (m.phase in _ENDED, m.phase == Phase.PLANNED, m.move_id))
    left_out = max(len(order) - SHOWN_MAX, 0)
    more = [Text(f"and {left_out} more", style="dim")] if left_out else []
    kept = [Text(_kept(answer))] if _kept(answer) else []
    return Group(Text(head(answer), style="bold"), *kept, _table(order[:SHOWN_MAX], width), *more)


def print_status(answer: RebalanceStatus) -> None:
    """The same once, on stdout."""
    console.print(head(answer), markup=False, soft_wrap=True)
    if kept := _kept(answer):
        console.print(kept, markup=False, soft_wrap=True)
    if answer.moves:
        console.print(_table(answer.moves, console.width))


def closing_line(found: Rebalance, moves: Sequence[Mapping[str, Any]], written: int) -> str:
    """What a rebalance did, in one line. Only rows that were compared on both sides count as verified."""
    seconds = ((found.ended_at or datetime.now(UTC)) - found.created_at).total_seconds()
    last = max((move["cut_over_at"] for move in moves if move["cut_over_at"]), default=None)
    handed = f" handed over in {(last - found.created_at).total_seconds():,.1f} s, and ended" if last else ""
    done = [move for move in moves if move["phase"] == Phase.DONE]
    retries = sum(move["retries"] for move in moves)
    pause = max((move["pause_ms"] or 0.0 for move in moves), default=0.0)
    verified = sum(move["rows_verified"] or 0 for move in done)
    whole = "0 acknowledged readings missing" if len(done) == len(moves) else f"{len(moves) - len(done)} moves not done"
    return (
        f"{found.state}: {len(done)} moves{handed} after {seconds:,.1f} s; {written:,} readings written meanwhile; "
        f"{retries} errors{', each tried again' if retries else ''}; longest write pause {pause:.0f} ms; {whole} "
        f"(verified: {verified:,} readings compared on both shards)"
    )
