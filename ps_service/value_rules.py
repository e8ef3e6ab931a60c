# SPDX-License-Identifier: Apache-2.0
"""Which values of an update no honest worker sends, bundle by bundle. PURE.

    every bundle   finite
    delta          | Δ + (1−a)·θ_0 | ≤ R, coordinate by coordinate, where the algorithm bounds it (`bound.py`)
    hessian        ≥ 0: it is a mean of squares

One value outside is enough: the update is refused as a whole, and its round goes on with the others. Any part
of a tensor can be judged at a time. What stays inside passes, whatever it was made for: that is left to
combiners.

A delta that travelled by its bound (`bounded_*`) is within it whatever its payload says: there it is the
constants in the header that are judged (`admission.py`).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from protocol.bound import DeltaBound
from protocol.codec import require_finite
from protocol.encodings import Encoding
from protocol.errors import NegativeHessian

Chunk = npt.NDArray[np.float32]


def check_update_values(
    bundle: str,
    name: str,
    values: Chunk,
    *,
    bound: DeltaBound | None,
    started_from: Callable[[], Chunk],
    encoding: Encoding,
) -> None:
    """Accept a part of a tensor of an update, or say what no honest worker sends.

    Args:
        name: the tensor's, for the message.
        values: as decoded.
        bound: of the steps that the worker did; None if nothing bounds them.
        started_from: gives the same part of the parameters that the worker was given; asked only if needed.
        encoding: how the values travelled; its rounding is allowed for.

    Raises:
        NotFinite, OutsideBound, NegativeHessian: there are such values.
    """
    require_finite(name, values)
    if bundle == "hessian" and (values < 0).any():
        raise NegativeHessian(f"{name}: {int((values < 0).sum())} values are negative")
    if bundle == "delta" and bound is not None and "shrinkage" not in encoding.constants:
        bound.check(name, values, started_from(), encoding)
