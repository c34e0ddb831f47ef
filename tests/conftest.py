"""Fixtures: servers for the session, a cluster and an in-process router for each module."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hypothesis import settings

from tests.support.routers import in_process
from tests.support.servers import TestCluster, new_cluster, test_servers

# HYPOTHESIS_PROFILE=quick|thorough; tests that ask databases say themselves how often.
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("default", max_examples=200, deadline=None)
settings.register_profile("thorough", max_examples=5_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers() -> AsyncIterator[list[str]]:
    async with test_servers() as dsns:
        yield dsns


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(servers: list[str]) -> AsyncIterator[TestCluster]:
    """Four shards, sixteen buckets; shared by the tests of a module."""
    async with new_cluster(servers) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(cluster: TestCluster) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an in-process router of `cluster`."""
    async with in_process(cluster, runner=False) as made:  # a leader would make partitions while tests look
        yield made


@pytest.fixture(scope="session", autouse=True)
def _plain_environment() -> object:
    """No VOLTROUTE_ setting of the caller's shell reaches the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("VOLTROUTE_") and name != "VOLTROUTE_TEST_POSTGRES":
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """A shell lets what it runs in the background ignore SIGINT, and what tests start and interrupt inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class LoopRunner:
    """Runs coroutines of synchronous tests (hypothesis') in the session's loop, where the fixtures live."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run_until_complete(work)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _session_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture
def event_loop_runner(_session_loop: asyncio.AbstractEventLoop) -> LoopRunner:
    return LoopRunner(_session_loop)
