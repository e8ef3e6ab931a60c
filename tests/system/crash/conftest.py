# SPDX-License-Identifier: Apache-2.0
"""What the killed federations are compared with."""

import time
from dataclasses import dataclass, field

import pytest
import pytest_asyncio

from tests.system.crash.federation import ROUNDS, a_federation
from tests.system.crash.laws import require_all_laws

ALGORITHMS = ("fed-sophia", "fed-sophia-shared")
"""The one keeps m and h on the worker, the other shares three bundles of state."""


@dataclass
class Undisturbed:
    """Runs in which nobody died."""

    tensors: dict[str, dict[str, str]] = field(default_factory=dict)
    """{algorithm: {bundle: digest}} of the last version."""
    round_s: float = 0.0
    """How long a round takes."""


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Each algorithm's run in a federation that is left in peace; the laws hold there too."""
    ended = Undisturbed()
    async with a_federation(tmp_path_factory.mktemp("undisturbed")) as federation:
        runs = {}
        for algorithm in ALGORITHMS:
            runs[algorithm] = await federation.begin(algorithm, algorithm)
            federation.start_workers()
            await federation.has_opened(runs[algorithm], 2)
            began_s = time.monotonic()
            ended.tensors[algorithm] = await federation.final_tensors(runs[algorithm])
            ended.round_s = max(ended.round_s, (time.monotonic() - began_s) / (ROUNDS - 1))
        await require_all_laws(federation, list(runs.values()))
    return ended


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How many processes are to die at random moments."""
    number: int = request.config.getoption("--kills")
    return number
