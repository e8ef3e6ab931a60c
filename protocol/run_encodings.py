# SPDX-License-Identifier: Apache-2.0
"""Which encodings a run may choose for the bundles that travel."""

from collections.abc import Mapping

from protocol.algorithms import Algorithm
from protocol.encodings import ENCODINGS, encoding_named


def check_encodings(
    encodings: Mapping[str, str],
    algorithm: Algorithm,
    hyperparameters: Mapping[str, object],
    local_steps: int,
) -> None:
    """Each bundle is one that is sent, in an encoding that can hold it.

    Raises:
        ValueError: naming the first that is not.
    """
    if not set(encodings.values()) <= set(ENCODINGS):
        raise ValueError(f"encodings: expected some of {', '.join(ENCODINGS)}")
    for bundle, name in sorted(encodings.items()):
        encoding = encoding_named(name)
        if bundle not in (*algorithm.combiners, *algorithm.normalised, "params"):
            raise ValueError(f"encodings: {algorithm.name} sends no bundle {bundle!r}")
        if encoding.bundle not in (None, bundle):
            raise ValueError(f"encodings: {name} is for {encoding.bundle}, not for {bundle}")
        if "shrinkage" in encoding.constants:
            bound = algorithm.parse(hyperparameters).bound(local_steps, local_steps)
            if bound is None:
                raise ValueError(f"encodings: {name}: nothing bounds the delta of {algorithm.name}")
