"""All peers, and those that are never here."""

from typing import Final

from bench.peers.influx import INFLUX
from bench.peers.peer import Peer, Promises
from bench.peers.quest import QUEST, QUEST_SYNC
from bench.peers.victoria import VICTORIA
from bench.systems import NULL, SEED, VOLTROUTE

PEERS: Final[tuple[Peer, ...]] = (INFLUX, VICTORIA, QUEST, QUEST_SYNC)
# Ours and the baselines, in the same words.
PROMISES: Final = {
    VOLTROUTE: Promises("yes", "found; conflicts told", "kept", "yes"),
    SEED: Promises("yes", "both kept", "kept, may go back", "yes"),
    NULL: Promises("stores nothing", "-", "-", "-"),
}
# What is not in a registry that the suite may use; said by name instead of left out silently.
NEVER: Final = {
    "InfluxDB 3": "no package of it",
    "TimescaleDB": "the embedded PostgreSQL has no such extension",
}
