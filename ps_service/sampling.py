# SPDX-License-Identifier: Apache-2.0
"""What follows from a run's seed: who is invited to a round, and the seeds of local training. PURE."""

import hashlib


def sample(seed: int, round_number: int, slots: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Choose `size` slots by the seed; the same whatever order `slots` come in. Ascending."""

    def rank(slot: int) -> bytes:
        return hashlib.sha256(f"cohort/{seed}/{round_number}/{slot}".encode()).digest()

    return tuple(sorted(sorted(slots, key=rank)[:size]))


def assignment_seed(seed: int, turn: int, slot: int, version: int | None = None) -> int:
    """The seed of one worker's local training, below 2^63.

    Args:
        turn: the round; in an asynchronous run the worker's own count, which an imported run begins anew.
        version: from which it trains, in an asynchronous run.
    """
    where = f"{turn}/{slot}" if version is None else f"{turn}/{slot}/{version}"
    digest = hashlib.sha256(f"train/{seed}/{where}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
