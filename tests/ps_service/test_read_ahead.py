# SPDX-License-Identifier: Apache-2.0
"""Few requests for many small reads, few bytes for few, and never a wrong byte."""

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest

from ps_service.storage.read_ahead import MIB, ReadAhead

KIB = 1024


class Messages:
    """Messages far away, and what was asked of them."""

    def __init__(self, **sizes_bytes: int) -> None:
        generator = random.Random(0)
        self.content = {name: generator.randbytes(size_bytes) for name, size_bytes in sizes_bytes.items()}
        self.asked: list[tuple[str, int, int]] = []

    def fetch(self, digest: str, start: int, stop: int) -> memoryview:
        self.asked.append((digest, start, stop))
        return memoryview(self.content[digest])[start:stop]

    @property
    def asked_bytes(self) -> int:
        return sum(stop - start for _, start, stop in self.asked)

    def read(self, reader: ReadAhead, digest: str, start: int, stop: int) -> None:
        """Read, and find the right bytes."""
        buffer = bytearray(stop - start)
        content = self.content[digest]
        reader.read_into(digest, len(content), start, memoryview(buffer))
        assert buffer == content[start:stop]

    def read_all(self, reader: ReadAhead, digest: str, step: int, start: int = 0) -> None:
        size = len(self.content[digest])
        for position in range(start, size, step):
            self.read(reader, digest, position, min(position + step, size))


def test_a_header_costs_its_own_bytes():
    messages = Messages(a=20 * MIB)
    messages.read(ReadAhead(messages.fetch), "a", 0, 16 * KIB)
    assert messages.asked == [("a", 0, 16 * KIB)]


def test_a_message_is_read_from_end_to_end_in_few_requests_and_once():
    messages = Messages(a=40 * MIB)
    reader = ReadAhead(messages.fetch)
    messages.read(reader, "a", 0, 16 * KIB)
    messages.read_all(reader, "a", 100 * KIB, start=1000)
    assert messages.asked_bytes == 40 * MIB
    assert len(messages.asked) <= 18, "8 until it is 4 MiB, then 10"
    assert max(stop - start for _, start, stop in messages.asked) == 4 * MIB


def test_padding_and_two_bundles_in_turn_are_read_ahead_all_the_same():
    messages = Messages(a=16 * MIB)
    reader = ReadAhead(messages.fetch)
    for position in range(0, 8 * MIB, 64 * KIB):
        for bundle in (0, 8 * MIB):
            messages.read(reader, "a", bundle + position, bundle + position + 64 * KIB - 60)
    assert len(messages.asked) <= 20
    assert messages.asked_bytes <= 17 * MIB


def test_reads_that_follow_nothing_fetch_nothing_else():
    messages = Messages(a=20 * MIB)
    reader = ReadAhead(messages.fetch)
    for position in range(19 * MIB, 0, -MIB):
        messages.read(reader, "a", position, position + 1000)
    assert messages.asked_bytes == 19 * 1000


@pytest.mark.parametrize(("count", "reads_a_request"), [(3, 8), (10, 6), (30, 3), (300, 1)])
def test_more_messages_at_a_time_are_read_ahead_less_and_none_is_fetched_twice(count, reads_a_request):
    messages = Messages(**{str(number): 256 * KIB for number in range(count)})
    reader = ReadAhead(messages.fetch, most_bytes=128 * KIB, kept_bytes=MIB)
    for position in range(0, 256 * KIB, 4 * KIB):
        for digest in messages.content:
            messages.read(reader, digest, position, position + 4 * KIB)
    assert messages.asked_bytes == count * 256 * KIB
    assert len(messages.asked) <= count * 64 / reads_a_request
    assert reader._held_bytes <= MIB


def test_what_is_kept_is_bounded_and_what_is_forgotten_is_asked_for_again():
    messages = Messages(a=3 * MIB, b=3 * MIB)
    reader = ReadAhead(messages.fetch, most_bytes=256 * KIB, kept_bytes=MIB)
    for digest in ("a", "b", "a"):
        messages.read_all(reader, digest, 50 * KIB)
        assert reader._held_bytes == sum(map(len, reader._order)) <= MIB
    assert 8 * MIB < messages.asked_bytes <= 9 * MIB
    reader.forget("a")
    reader.forget("b")
    assert (reader._held_bytes, reader._of_message) == (0, {})


def test_threads_that_read_anything_anywhere_find_the_right_bytes():
    messages = Messages(**{str(number): 300_000 + number for number in range(5)})
    reader = ReadAhead(messages.fetch, most_bytes=20_000, kept_bytes=100_000)

    def reads(seed: int) -> None:
        generator = random.Random(seed)
        for _ in range(400):
            digest = str(generator.randrange(5))
            start = generator.randrange(300_000)
            stop = min(start + generator.choice([1, 100, 5_000, 50_000]), 300_000)
            messages.read(reader, digest, start, stop)
            if generator.random() < 0.05:
                reader.forget(digest)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reads, range(8)))
    assert reader._held_bytes == sum(map(len, reader._order)) <= 100_000


def test_those_who_want_the_same_bytes_wait_for_one_request():
    asked, is_asked, all_here = [], Event(), Barrier(4)

    def fetch(digest: str, start: int, stop: int) -> memoryview:
        asked.append((start, stop))
        is_asked.set()
        all_here.wait(10)
        return memoryview(bytes(stop - start))

    reader = ReadAhead(fetch)

    def read(offset: int) -> None:
        all_here.wait(10)
        reader.read_into("a", 10_000, offset, memoryview(bytearray(100)))

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(reader.read_into, "a", 10_000, 0, memoryview(bytearray(1000)))
        assert is_asked.wait(10)
        for waiting in [first, *(pool.submit(read, offset) for offset in (0, 300, 900))]:
            waiting.result()
    assert asked == [(0, 1000)]


def test_a_request_that_fails_is_forgotten_and_made_again():
    answers = iter([ConnectionError("gone"), memoryview(b"content")])

    def fetch(digest: str, start: int, stop: int) -> memoryview:
        answer = next(answers)
        if isinstance(answer, ConnectionError):
            raise answer
        return answer[start:stop]

    reader, buffer = ReadAhead(fetch), bytearray(7)
    with pytest.raises(ConnectionError, match="gone"):
        reader.read_into("a", 7, 0, memoryview(buffer))
    assert (reader._held_bytes, reader._of_message) == (0, {})
    reader.read_into("a", 7, 0, memoryview(buffer))
    assert buffer == b"content"
