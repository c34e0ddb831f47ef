"""How far a replica is behind, and how far readers have seen: against what really happened."""

from hypothesis import given
from hypothesis import strategies as st

from shards.postgres.lag import KEPT_S, Floors, Written

# Of a primary: (seconds since it was asked before, bytes written since then).
ASKED = st.lists(st.tuples(st.floats(0.01, 900), st.integers(0, 5)), min_size=1, max_size=60)


@given(ASKED, st.integers(0, 200))
def test_a_replica_has_everything_of_the_time_that_is_said(asked: list[tuple[float, int]], replayed: int) -> None:
    """At that time no more was written than it has; and of what was kept it is the newest such time."""
    written, now, position = Written(), 0.0, 10
    seen: list[tuple[float, int]] = []
    for pause, more in asked:
        now, position = now + pause, position + more
        written.add(now, position)
        seen.append((now, position))
    found = written.complete_at(replayed)
    fitting = [at for at, there in seen if there <= replayed]
    if found is not None:
        assert found == max(fitting)
    else:
        assert not fitting or max(fitting) < now - KEPT_S


@given(ASKED)
def test_another_history_is_begun_anew(asked: list[tuple[float, int]]) -> None:
    """A position that went back: what was known of the other history says nothing any more."""
    written, now, position = Written(), 0.0, 100
    for pause, more in asked:
        now, position = now + pause, position + more
        written.add(now, position)
    written.add(now + 1, 50)
    assert written.complete_at(49) is None
    assert written.complete_at(10_000) == now + 1
    written.forget()
    assert written.complete_at(10_000) is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 50)), max_size=80), st.integers(1, 4))
def test_no_reader_is_forgotten_to_have_seen_something(answers: list[tuple[str, int]], most: int) -> None:
    """However few are remembered; and nobody's floor is above what anybody has seen."""
    floors = Floors(most)
    seen: dict[str, int] = {}
    for reader, position in answers:
        floors.saw(reader, position)
        seen[reader] = max(position, seen.get(reader, 0))
    for reader, position in seen.items():
        assert position <= floors.of(reader) <= max(seen.values())
    assert floors.of("nobody") <= max(seen.values(), default=0)
