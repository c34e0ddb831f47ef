from shards.postgres.breaker import Breaker, BreakerState


def tripped() -> Breaker:
    breaker = Breaker(failures_max=3, cooldown_s=1, cooldown_max_s=4)
    for _ in range(3):
        breaker.failed(now=10)
    return breaker


def test_a_few_failures_are_forgiven() -> None:
    breaker = Breaker(failures_max=3)
    breaker.failed(0)
    breaker.failed(0)
    assert breaker.allow(0, probe_timeout_s=1)
    breaker.succeeded()
    breaker.failed(0)
    assert breaker.state(0) is BreakerState.CLOSED


def test_open_then_one_probe_at_a_time() -> None:
    breaker = tripped()
    assert breaker.state(10.5) is BreakerState.OPEN
    assert not breaker.allow(10.5, 5)
    assert breaker.retry_after_s(10.5) == 0.5
    assert breaker.allow(11, 5)
    assert not breaker.allow(11, 5)
    assert breaker.allow(16, 5), "a probe whose end nobody reported gives way to the next"


def test_a_good_probe_closes_a_bad_one_waits_longer() -> None:
    breaker = tripped()
    assert breaker.allow(11, 5)
    breaker.failed(11)
    assert not breaker.allow(12.5, 5)
    assert breaker.allow(13, 5)
    breaker.succeeded()
    assert breaker.state(13) is BreakerState.CLOSED
    assert breaker.retry_after_s(13) == 0


def test_the_wait_has_a_limit() -> None:
    breaker = tripped()
    for now in range(20, 40):
        breaker.failed(now)
    assert breaker.state(39 + 4) is BreakerState.HALF_OPEN
