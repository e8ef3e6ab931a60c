# SPDX-License-Identifier: Apache-2.0
"""So many at a time: of all, and of each worker. Who finds no place is refused at once and comes again."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import FedSophiaError


class Places:
    """The places for one kind of request that lasts."""

    def __init__(self, most: int, most_of_one: int, refusal: type[FedSophiaError]) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._refusal = refusal
        self._taken = 0
        self._of_one: defaultdict[str, int] = defaultdict(int)

    @property
    def taken(self) -> int:
        return self._taken

    @contextmanager
    def one(self, worker_id: str | None) -> Iterator[None]:
        """Have a place while this is open.

        Args: worker_id: who has it; None is an operator, who counts among all only.

        Raises:
            The refusal these places were made with: there is none left, or none for this worker.
        """
        if worker_id is not None and self._of_one.get(worker_id, 0) >= self._most_of_one:
            raise self._refusal(f"this worker has {self._most_of_one} of them going on; wait for one to end")
        if self._taken >= self._most:
            raise self._refusal(f"{self._most} of them are going on; try again")
        self._taken += 1
        if worker_id is not None:
            self._of_one[worker_id] += 1
        try:
            yield
        finally:
            self._taken -= 1
            if worker_id is not None:
                self._of_one[worker_id] -= 1
                if not self._of_one[worker_id]:
                    del self._of_one[worker_id]
