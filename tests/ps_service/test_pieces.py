# SPDX-License-Identifier: Apache-2.0
"""However many transfers there are, what all of them have in memory at a time hardly grows."""

from contextlib import ExitStack

from ps_service.pieces import ALL_BYTES, LEAST_BYTES, MOST_BYTES, Pieces


def test_a_few_transfers_have_large_pieces_and_a_crowd_shares():
    pieces = Pieces()
    sizes = {}
    with ExitStack() as transfers:
        for count in range(1, 200):
            transfers.enter_context(pieces.transfer())
            sizes[count] = pieces.size_bytes
    assert sizes[1] == sizes[4] == MOST_BYTES
    assert all(
        count * size <= ALL_BYTES for count, size in sizes.items() if count <= ALL_BYTES // LEAST_BYTES
    )
    assert sizes[199] == LEAST_BYTES


def test_a_transfer_that_ended_has_no_share():
    pieces = Pieces()
    for _ in range(100):
        with pieces.transfer():
            pass
    assert pieces.size_bytes == MOST_BYTES
