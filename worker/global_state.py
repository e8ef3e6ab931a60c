# SPDX-License-Identifier: Apache-2.0
"""The global state that an assignment starts from: fetched once, kept while assignments name it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

from protocol.codec import Bundle
from protocol.errors import BundleMismatch
from worker.update import state_in

MAX_BUNDLES = 8
MIB = 1024 * 1024

Fetch = Callable[[str, str, int | None], Awaitable[memoryview]]
"""(run, digest, the most bytes that may come; None sets no limit of its own) → a tensor message."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """The bundles of one tensor message."""

    bundles: Mapping[str, Bundle]


class Held:
    """What the workers of a process hold. Each fetches its own, and the memory is spent once."""

    def __init__(self) -> None:
        self.by_digest: WeakValueDictionary[str, Decoded] = WeakValueDictionary()
        """Of every worker at work, and the latest."""
        self.latest: Mapping[str, Decoded] = {}
        """{digest: of the assignment that was taken up or done with last}; the next may name it again."""


class GlobalState:
    """The bundles that this worker's assignment names, by the digests of their messages."""

    def __init__(self, fetch: Fetch, held: Held | None = None) -> None:
        """Args: held: shared with other workers of this process."""
        self._fetch = fetch
        self._shared = Held() if held is None else held
        self._held: dict[str, Decoded] = {}
        self._fetched: frozenset[str] = frozenset()
        """Digests of what this worker let go of last."""

    async def pull(self, run_id: str, digests: Mapping[str, str]) -> Mapping[str, Bundle]:
        """Give the bundles with these digests, fetching those that are lacking; others are forgotten.

        A bundle beside `params` may take twice their size, and no more: none that is needed does.

        Raises:
            BundleMismatch: `params` is not among them, there are too many, or one is not what it is called.
            NotFinite: a tensor holds NaN or an infinity.
            MessageTooLarge, MalformedTensorMessage, TruncatedTensorMessage, UnknownEncoding: as named.
        """
        if "params" not in digests:
            raise BundleMismatch("the assignment names no params to start from")
        if len(digests) > MAX_BUNDLES:
            raise BundleMismatch(
                f"the assignment names {len(digests)} bundles; at most {MAX_BUNDLES} are taken"
            )
        self.let_go()
        named = {digest: self._shared.by_digest.get(digest) for digest in digests.values()}
        there = {digest: decoded for digest, decoded in named.items() if decoded is not None}
        self._shared.latest = there  # what is older goes before what is newer comes
        self._held = {digest: decoded for digest, decoded in there.items() if digest in self._fetched}
        params = await self._bundle(run_id, "params", digests["params"], None)
        at_most_bytes = 2 * sum(values.nbytes for values in params.values()) + MIB
        state = {"params": params}
        for name, digest in digests.items():
            if name != "params":
                state[name] = await self._bundle(run_id, name, digest, at_most_bytes)
        return state

    def let_go(self) -> None:
        """Be done with it: of thousands who wait, each would hold the version that it had last."""
        if self._held:
            self._shared.latest, self._fetched, self._held = self._held, frozenset(self._held), {}

    async def _bundle(self, run_id: str, name: str, digest: str, at_most_bytes: int | None) -> Bundle:
        if digest not in self._held:
            message = await self._fetch(run_id, digest, at_most_bytes)
            known = self._shared.by_digest.get(digest)
            self._held[digest] = known or await self._decode(digest, message)
        bundles = self._held[digest].bundles
        if name not in bundles:
            raise BundleMismatch(f"tensors {digest}: expected bundle {name} in them")
        return bundles[name]

    async def _decode(self, digest: str, message: memoryview) -> Decoded:
        decoded = Decoded(await asyncio.to_thread(state_in, message))
        return self._shared.by_digest.setdefault(digest, decoded)  # another may have been sooner
