import pytest

from shards.cluster.replicas import ReplicaRules, Replicas
from shards.errors import Cause, DataRejected, ShardUnavailable
from shards.postgres.dsn import Address, addresses
from shards.postgres.lineage import Lineage, Role, Standing
from shards.postgres.outage import Outage, is_down, was_answered


def test_the_newest_timeline_of_one_system_is_believed() -> None:
    lineage, told = Lineage(), list[int]()
    end = lineage.listen(lambda: told.append(lineage.timeline))
    lineage.learn(None, 0)
    for timeline in (1, 2, 2, 1):
        lineage.learn(7, timeline)
    assert (lineage.system, lineage.timeline, told) == (7, 2, [1, 2])
    assert lineage.refusal(Standing(7, 2)) is None
    assert lineage.refusal(Standing(7, None)) == "it is a replica"
    assert "old primary" in (lineage.refusal(Standing(7, 1)) or "")
    assert lineage.foreign(Standing(7, 1)) is None
    assert "another server" in (lineage.foreign(Standing(8, 9)) or "")
    assert [lineage.is_past(each) for each in (1, 2, None)] == [True, False, False]
    end()
    end()
    lineage.learn(8, 1)  # an operator accepted another one
    assert (lineage.system, lineage.timeline, told) == (8, 1, [1, 2])


def test_a_replica_is_asked_to_be_one() -> None:
    lineage = Lineage(7, 2)
    assert lineage.refusal(Standing(7, None), Role.REPLICA) is None
    assert lineage.refusal(Standing(7, 2), Role.REPLICA) == "it is a primary, not a replica"


def test_what_an_earlier_run_saw_is_remembered() -> None:
    """Of the same system alone: it may have been restored since."""
    lineage = Lineage()
    lineage.remember(7, 3)
    assert lineage.refusal(Standing(7, 2)) == "it is an old primary: its timeline is 2, and 3 was seen"
    assert lineage.refusal(Standing(7, 3)) is None
    assert lineage.refusal(Standing(8, 1)) is None


def test_what_readers_have_seen_of_another_server_says_nothing() -> None:
    lineage = Lineage(7, 1)
    replicas = Replicas(None, lineage, lambda _record: pytest.fail("none is made"), ReplicaRules())
    replicas.floors.saw("somebody", 1000)
    lineage.learn(7, 2)
    assert replicas.floors.of("somebody") == 1000
    lineage.learn(8, 1)
    assert replicas.floors.of("somebody") == 0


def test_hosts_of_a_dsn() -> None:
    for dsn, hosts in {
        "postgresql://a:b@db1:5433,db2/x": (Address("db1", 5433), Address("db2")),
        "postgresql://a@[::1]:5433/x": (Address("::1", 5433),),
        "postgresql:///x?host=db1,db2&port=5433": (Address("db1", 5433), Address("db2", 5433)),
        "postgresql:///x?host=db1,db2&port=1,2": (Address("db1", 1), Address("db2", 2)),
        "postgresql:///x?service=s": (Address(),),
        "postgresql://a@%2Frun%2Fpg/x": (Address("/run/pg"),),
    }.items():
        assert addresses(dsn) == hosts, dsn
    assert [str(Address("::1", 1)), str(Address("h", 2)), str(Address())] == ["[::1]:1", "h:2", "its server"]


def test_what_is_waited_for() -> None:
    down = ShardUnavailable("s1", "gone")
    for several, first, until in ((False, down, None), (True, down, 15.0), (False, stopping(), 15.0)):
        outage = Outage(several, hold_s=5.0)
        assert outage.may_end_until(down) is None
        outage.begins(first, 10.0)
        outage.begins(down, 12.0)
        assert outage.may_end_until(down) == until
        assert outage.may_end_until(DataRejected("s1", "no")) is None
        assert outage.may_end_until(ShardUnavailable("s1", "full", cause=Cause.DISK_FULL)) is None
        outage.ends()
        assert outage.may_end_until(down) is None
    assert is_down(down)
    assert not was_answered(down)
    assert was_answered(DataRejected("s1", "no"))
    assert not is_down(ShardUnavailable("s1", "locked", cause=Cause.LOCKED))


def stopping() -> ShardUnavailable:
    return ShardUnavailable("s1", "shutting down", cause=Cause.STARTING_OR_STOPPING)
