# SPDX-License-Identifier: Apache-2.0
"""What becomes of an aggregation that fails: tried again, given up, or no longer wanted."""

import pytest

from protocol.errors import StorageUnavailable
from ps_service.effects import perform_effects
from ps_service.storage import Stores
from ps_service.storage.files import FileBlobs


class FailingBlobs(FileBlobs):
    """A store that reads nothing and fails like this."""

    def __init__(self, directory, error):
        super().__init__(directory)
        self.error = error

    def read_into(self, digest, offset, buffer):
        raise self.error


@pytest.fixture
async def server(start_server):
    return await start_server(performing=False)


async def an_aggregating_run(server, error):
    run_id, cohort = await server.a_round()
    for worker, assignment in cohort:
        await worker.send(assignment)
    server.runner.stores = Stores(server.stores.records, FailingBlobs(server.directory, error))
    return run_id


async def test_a_mistake_of_ours_abandons_the_round_and_does_not_hold_the_run_for_ever(server, caplog):
    run_id = await an_aggregating_run(server, KeyError("swordfish"))
    assert await perform_effects(server.runner)
    first = (await server.rounds(run_id))[0]
    assert first["status"] == "abandoned"
    assert "internal error; the server's log has the reason" in first["reason"]
    assert "swordfish" in caplog.text
    assert "Traceback" in caplog.text
    assert (await server.show(run_id)).round == 2


@pytest.mark.parametrize("error", [OSError("no space left"), StorageUnavailable("it does not answer")])
async def test_a_store_that_fails_is_tried_again(server, error):
    run_id = await an_aggregating_run(server, error)
    assert not await perform_effects(server.runner)
    assert (await server.rounds(run_id))[0]["status"] == "aggregating"


async def test_what_a_cancelled_run_had_asked_for_is_ticked_off_unread(server):
    run_id = await an_aggregating_run(server, OSError("it was read"))
    await server.operator.post(f"/v1/runs/{run_id}/cancel")
    assert await perform_effects(server.runner)
    assert (await server.rounds(run_id))[0]["reason"] == "the run ended"
