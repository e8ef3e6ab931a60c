# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the whole suite."""

import gc
import os
import secrets
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.postgres import FAST, Postgres, a_postgres
from tests.s3 import S3Server, an_s3_server

# what fails there says what was found, as in a test
pytest.register_assert_rewrite(
    "tests.system.crash.laws", "tests.system.crash.federation", "tests.system.cluster.federation"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=20, help="processes that die at random moments in tests/system/crash"
    )


def pytest_configure() -> None:
    # under `nohup` a hang-up is ignored, here and in every process that a test starts
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def postgres(require_part: Callable[[bool, str], None]) -> Iterator[Postgres]:
    """A PostgreSQL for all tests that want one."""
    with a_postgres(require_part, *FAST) as running:
        yield running


@pytest.fixture
def new_database(postgres: Postgres) -> Iterator[Callable[[], str]]:
    """Makes an empty database; gives its URL."""
    names: list[str] = []

    def make() -> str:
        names.append(f"test-{secrets.token_hex(6)}")
        return postgres.create(names[-1])

    yield make
    for name in names:
        postgres.drop(name)


@pytest.fixture(autouse=True)
def looked_through_again() -> Iterator[None]:
    """Leaks are to be found: a command that a test runs here keeps garbage from being looked for."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def require_part() -> Callable[[bool, str], None]:
    """Call with (found, what): a test whose part is missing is skipped, or fails if all are required."""

    def require(found: bool, what: str) -> None:
        if found:
            return
        if os.environ.get("FED_SOPHIA_REQUIRE_ALL") == "1":
            pytest.fail(f"{what} is missing, and FED_SOPHIA_REQUIRE_ALL is set")
        pytest.skip(f"{what} is missing")

    return require


@pytest.fixture(scope="session")
def s3(
    tmp_path_factory: pytest.TempPathFactory, require_part: Callable[[bool, str], None]
) -> Iterator[S3Server]:
    """A real S3 server for all tests: nobody stops it, and each test has a prefix of its own."""
    with an_s3_server(tmp_path_factory.mktemp("s3"), require_part) as server:
        yield server
