# SPDX-License-Identifier: Apache-2.0
"""Which versions of a run an operator asks for, and whether they can be had."""

from collections.abc import Sequence
from typing import Literal

from protocol.errors import InvalidUsage, NotFound
from protocol.messages import VersionSummary

Wanted = Literal["last", "all", "none"] | tuple[int, ...]
_BY_WORD: dict[str, Wanted] = {"last": "last", "all": "all", "none": "none"}


def wanted_versions(text: str) -> Wanted:
    """Read `last`, `all`, `none` or numbers like `3,5,8`.

    Raises:
        InvalidUsage: it is none of these.
    """
    if text in _BY_WORD:
        return _BY_WORD[text]
    numbers = text.split(",")
    if not all(number.isdecimal() and number.isascii() and len(number) <= 9 for number in numbers):
        raise InvalidUsage(f"--versions {text!r}: expected last, all, none, or numbers like 3,5,8")
    return tuple(sorted({int(number) for number in numbers}))


def chosen(wanted: Wanted, run_id: str, versions: Sequence[VersionSummary]) -> tuple[int, ...]:
    """The numbers of these versions, ascending; `versions` are all there are, from version 0.

    Raises:
        NotFound: one that was asked for does not exist, or is no longer kept.
    """
    kept = [version.version for version in versions if not version.collected]
    last = len(versions) - 1
    if wanted == "all":
        return tuple(kept)
    if wanted == "none":
        return ()
    numbers = (last,) if wanted == "last" else wanted
    for number in numbers:
        if not 0 <= number <= last:
            raise NotFound(f"version {number} of run {run_id}: expected one of 0 to {last}")
        if number not in kept:
            raise NotFound(f"version {number} is no longer kept; kept are {_listed(kept) or 'none'}")
    return numbers


def _listed(numbers: Sequence[int]) -> str:
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 20 else [*shown[:10], "…", *shown[-10:]])
