# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the whole suite."""

import os
from collections.abc import Callable

import pytest

# what fails there says what was found, as in a test
pytest.register_assert_rewrite("tests.system.crash.laws", "tests.system.crash.federation")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=20, help="processes that die at random moments in tests/system/crash"
    )


@pytest.fixture
def require_part() -> Callable[[bool, str], None]:
    """Call with (found, what): a test whose part is missing is skipped, or fails if all are required."""

    def require(found: bool, what: str) -> None:
        if found:
            return
        if os.environ.get("FED_SOPHIA_REQUIRE_ALL") == "1":
            pytest.fail(f"{what} is missing, and FED_SOPHIA_REQUIRE_ALL is set")
        pytest.skip(f"{what} is missing")

    return require
