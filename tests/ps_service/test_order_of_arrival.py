# SPDX-License-Identifier: Apache-2.0
"""For a given admitted set, order changes nothing: the same updates in any order make the same bytes."""

import tempfile
from contextlib import closing
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ps_service.small_federation import SmallFederation

WORKERS = 4
ROUNDS = 2

spec = st.fixed_dictionaries(
    {
        "algorithm": st.sampled_from(["fedavg", "fed-sophia", "fed-sophia-shared"]),
        "weighting": st.sampled_from(["uniform", "num_examples"]),
    }
)
admitted_sets = st.lists(st.sets(st.integers(0, WORKERS - 1), min_size=2), min_size=ROUNDS, max_size=ROUNDS)
"""The slots whose updates are admitted, for each round."""


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spec, admitted_sets, st.data())
def test_the_same_updates_in_any_order_make_the_same_tensors(spec, admitted_sets, data):
    orders = [data.draw(st.permutations(sorted(admitted)), label="order") for admitted in admitted_sets]
    arriving = data.draw(st.permutations(range(WORKERS)), label="workers ask in this order")
    twice = data.draw(st.booleans(), label="each is sent twice")

    made = versions_made(spec, [sorted(admitted) for admitted in admitted_sets], range(WORKERS))
    assert len(made) == 1 + ROUNDS
    assert versions_made(spec, orders, arriving, twice=twice) == made


def versions_made(spec, orders, arriving, *, twice=False):
    """The digests of every version that a fresh server makes of updates that come in these orders."""
    with tempfile.TemporaryDirectory() as directory, closing(SmallFederation(Path(directory))) as field:
        for number in range(WORKERS):
            field.enrol(f"worker-{number}")
        run_id = field.create_run(**spec, rounds=ROUNDS, cohort_size=WORKERS, quorum=2)
        for number in arriving:
            field.ask(field.workers[number])
        for number, slots in enumerate(orders, start=1):
            invited = {row["slot"]: row for row in field.ledger().invited_to((run_id, number))}
            for slot in [slot for slot in slots for _ in range(1 + twice)]:
                update = field.an_update(invited[slot], seed=10 * number + slot, num_examples=3 + slot)
                assert field.send(invited[slot], update).status_code == 200
            field.operate(f"/v1/runs/{run_id}/rounds/{number}/aggregate")
            field.perform()
        return [row["tensors"] for row in field.ledger().versions.values()]
