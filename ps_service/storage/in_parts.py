# SPDX-License-Identifier: Apache-2.0
"""Long lists of values, in parts that a statement can hold: PostgreSQL binds 32,767 values at most."""

from collections.abc import Collection, Iterator

MOST_VALUES = 10_000


def in_parts(values: Collection[str], most: int = MOST_VALUES) -> Iterator[list[str]]:
    """All of them, in their order."""
    listed = list(values)
    return (listed[start : start + most] for start in range(0, len(listed), most))
