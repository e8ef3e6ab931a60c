# SPDX-License-Identifier: Apache-2.0
"""What follows from a run's seed: who is invited to a round, and the seeds of local training. PURE."""

import hashlib


def sample(seed: int, round_number: int, slots: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Choose `size` slots by the seed; the same whatever order `slots` come in. Ascending."""

    def rank(slot: int) -> bytes:
        return hashlib.sha256(f"cohort/{seed}/{round_number}/{slot}".encode()).digest()

    return tuple(sorted(sorted(slots, key=rank)[:size]))


def assignment_seed(seed: int, turn: int, slot: int) -> int:
    """The seed of one worker's local training in its turn (of a synchronous run: the round), below 2^63."""
    digest = hashlib.sha256(f"train/{seed}/{turn}/{slot}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
