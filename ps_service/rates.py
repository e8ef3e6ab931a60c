# SPDX-License-Identifier: Apache-2.0
"""How many requests a worker, or an address, may make: token buckets. PURE given the time.

A bucket holds `per_s · burst_s` tokens, `per_s` of them come back each second, and a request takes one. All
that is kept of a bucket is the time at which it will be full again: each token that is missing moves it back
by `1 / per_s`. A bucket that is full by now need not be kept, nor one of the many that were used long ago.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable

from protocol.errors import TooManyRequests
from ps_service.clock import Clock

MOST_KEYS = 100_000
WORKER_BURST_S = 10.0
ADDRESS_BURST_S = 20.0
SIGNED_PER_S, SIGNED_BURST_S = 1.0, 60.0
"""What a worker signs for costs a transaction that writes; an honest one signs every few minutes."""


class TokenBuckets:
    """One bucket a key, in bounded memory: of too many, the one used longest ago is taken to be full."""

    def __init__(self, per_s: float, burst_s: float, most_keys: int = MOST_KEYS) -> None:
        self._a_token_s = 1.0 / per_s
        self._burst_s = max(burst_s, self._a_token_s)
        self._most_keys = most_keys
        self._latest_s = 0.0
        self._full_s: OrderedDict[str, float] = OrderedDict()  # the key that was used last is the last

    def __len__(self) -> int:
        return len(self._full_s)

    def take(self, key: str, now_s: float, share: int = 1) -> float:
        """Take a token: 0.0 where there was one, else the seconds until there is one, and none is taken.

        Args: share: of so many servers each gives out its part: a token here stands for so many in all.
        """
        if now_s < self._latest_s:  # the clock was set back: what was written in its future says nothing
            self._full_s.clear()
        self._latest_s = now_s
        full_s = max(self._full_s.get(key, now_s), now_s) + self._a_token_s * share
        wait_s = full_s - now_s - self._burst_s
        if wait_s > 1e-6:  # what floats lose of a time in seconds since 1970
            self._full_s.move_to_end(key)
            return wait_s
        self._full_s[key] = full_s
        self._full_s.move_to_end(key)
        if len(self._full_s) > self._most_keys:
            self._full_s.popitem(last=False)
        return 0.0


class Rates:
    """The buckets of one server."""

    def __init__(
        self, clock: Clock, per_worker: float, per_address: float, servers: Callable[[], int] = lambda: 1
    ) -> None:
        """Args: servers: how many share the work, and so the rates."""
        self._clock = clock
        self._servers = servers
        self._workers = TokenBuckets(per_worker, WORKER_BURST_S)
        self._addresses = TokenBuckets(per_address, ADDRESS_BURST_S)
        self._signers = TokenBuckets(SIGNED_PER_S, SIGNED_BURST_S)

    def of_worker(self, worker_id: str) -> None:
        """Raises: TooManyRequests: this worker asks more often than it may."""
        wait_s = self._workers.take(worker_id, self._clock.now_ms() / 1000, self._servers())
        if wait_s:
            raise TooManyRequests("this worker asks too often", wait_s)

    def of_signer(self, worker_id: str) -> None:
        """Raises: TooManyRequests: this worker has proved that it asks, and asks too often."""
        wait_s = self._signers.take(worker_id, self._clock.now_ms() / 1000, self._servers())
        if wait_s:
            raise TooManyRequests("this worker signs too often", wait_s)

    def of_address(self, address: str) -> None:
        """Raises: TooManyRequests: more requests come from this address than may."""
        wait_s = self._addresses.take(network_of(address), self._clock.now_ms() / 1000, self._servers())
        if wait_s:
            raise TooManyRequests("too many requests come from this address", wait_s)


def network_of(address: str) -> str:
    """What one subscriber holds: an IPv4 address, or the 64 bits of IPv6 that a site's hosts share."""
    if ":" not in address:
        return address
    try:
        whole = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if whole.ipv4_mapped is not None:  # as a socket that takes both gives it
        return str(whole.ipv4_mapped)
    return whole.packed[:8].hex()
