# SPDX-License-Identifier: Apache-2.0
"""Old objects are left alone while a server runs, and cycles among new ones are not."""

import asyncio
import gc
import weakref

import pytest

from ps_service.collector import NEW_OBJECTS, collect_seldom


class Cyclic:
    """Garbage that only the collector finds."""

    def __init__(self):
        self.itself = self


@pytest.fixture
async def rhythm():
    before = gc.get_threshold()
    collecting = asyncio.create_task(collect_seldom())
    await asyncio.sleep(0)
    yield
    collecting.cancel()
    await asyncio.wait([collecting])
    assert gc.get_threshold() == before


async def test_garbage_among_new_objects_is_found_and_old_objects_are_not_gone_through(rhythm):
    gc.collect()
    before = [generation["collections"] for generation in gc.get_stats()]
    garbage = weakref.ref(Cyclic())
    crowd = [[number] for number in range(30 * NEW_OBJECTS)]
    after = [generation["collections"] for generation in gc.get_stats()]
    assert garbage() is None
    assert after[0] - before[0] >= 25
    assert after[1:] == before[1:]
    assert len(crowd) == 30 * NEW_OBJECTS
