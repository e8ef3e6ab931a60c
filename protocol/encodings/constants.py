# SPDX-License-Identifier: Apache-2.0
"""The constants of a tensor's header: numbers that its payload cannot be decoded without."""

import math
from collections.abc import Mapping

from protocol.errors import MalformedTensorMessage

Constants = Mapping[str, float]
NO_CONSTANTS: Constants = {}


def require_constants(encoding: str, ranges: Mapping[str, tuple[float, float]], constants: Constants) -> None:
    """The constants are those of the encoding, each a number in its range.

    Raises:
        MalformedTensorMessage: naming the first that is wrong.
    """
    if set(constants) != set(ranges):
        expected = " and ".join(ranges) or "no constants"
        raise MalformedTensorMessage(f"{encoding} takes {expected}, got {len(constants)} constants")
    for name, (least, most) in ranges.items():
        value = constants[name]
        if not (math.isfinite(value) and least <= value <= most):
            # its value may be one of the tensor's
            raise MalformedTensorMessage(f"{encoding}: {name} is no number from {least:g} to {most:g}")
