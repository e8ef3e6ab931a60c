# SPDX-License-Identifier: Apache-2.0
"""What stands in for training sends other bytes in every round, and a mean that is known."""

from copy import deepcopy

import numpy as np

from benchmarks.exchange.worker import NearlySameDelta, sent_by
from protocol.codec import Bundle, digest_of, encode_bundle
from protocol.messages import Assignment


def an_assignment(number: int) -> Assignment:
    return Assignment(
        assignment_id=f"a-{number}",
        run_id="r1",
        round=number,
        version=number - 1,
        slot=0,
        phase="train",
        task="exchange",
        tensors={},
        bundles=("delta",),
        encodings={},
        optimizer="sgd",
        settings={},
        local_steps=10,
        batch_size=32,
        seed=1,
        deadline_ms=0,
    )


def sent_in(rounds: int) -> list[Bundle]:
    """What one worker sends in each; it may change it in place once it has been sent."""
    worker = NearlySameDelta(sent_by(2))
    state = {"params": {name: np.zeros(5, np.float32) for name in ("layer-00", "layer-01")}}
    return [
        deepcopy(dict(worker.train(an_assignment(number), state, None).bundles["delta"]))
        for number in range(1, rounds + 1)
    ]


def test_no_two_rounds_send_the_same_blob() -> None:
    digests = {digest_of(encode_bundle("delta", delta)) for delta in sent_in(rounds=50)}
    assert len(digests) == 50


def test_the_mean_of_all_is_known_at_every_coordinate() -> None:
    for delta in sent_in(rounds=50):
        assert list(delta) == ["layer-00", "layer-01"]
        for values in delta.values():
            np.testing.assert_allclose(values, sent_by(2), rtol=1e-5)
