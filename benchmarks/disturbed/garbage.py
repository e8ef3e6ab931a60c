# SPDX-License-Identifier: Apache-2.0
"""Makes what a liar sends. PURE: the same generator gives the same bytes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.disturbed.disturbances import Garbage
from protocol.bound import DeltaBound
from protocol.codec import Bundle, NamedTensor, digest_of, encode_message
from protocol.messages import Assignment, UpdateHeader, parse

Values = npt.NDArray[np.float32]
HUGE = 1e6
HESSIAN_EXPONENTS = (-12.0, 6.0)
"""A random Hessian is log-uniform between these powers of ten, coordinate by coordinate."""
EXCESS_BYTES = 1000
_JUST_INSIDE = 1 - 1e-6


@dataclass(frozen=True)
class Forgery:
    """A declaration, and a body that need not be what it declares."""

    header: UpdateHeader
    body: bytes
    hangs_up_after: int | None = None
    """Bytes sent before the connection is closed; None sends them all."""


def forge(
    kind: Garbage, assignment: Assignment, state: Mapping[str, Bundle], chance: np.random.Generator
) -> Forgery:
    """Garbage of this kind, for an assignment that starts from this state."""
    tensors = [
        NamedTensor(bundle, name, values, assignment.encodings.get(bundle, "f32"))
        for bundle in assignment.bundles
        for name, values in _bundle(kind, bundle, assignment, state, chance).items()
    ]
    body = b"".join(encode_message("update", tensors))
    header = parse(
        UpdateHeader,
        {
            "digest": digest_of([body]),
            "size_bytes": len(body),
            "bundles": assignment.bundles,
            "encodings": assignment.encodings,
            "num_examples": int(chance.integers(1, 10_000)),
            "local_steps": assignment.local_steps,
        },
    )
    match kind:
        case Garbage.DAMAGED:
            # the last bit of the last value: nothing but the digest can tell
            return Forgery(header, body[:-4] + bytes([body[-4] ^ 1]) + body[-3:])
        case Garbage.OVERLONG:
            return Forgery(header, body + bytes(EXCESS_BYTES))
        case Garbage.TRUNCATED:
            return Forgery(header, body, hangs_up_after=len(body) // 2)
        case _:
            return Forgery(header, body)


def _bundle(
    kind: Garbage,
    bundle: str,
    assignment: Assignment,
    state: Mapping[str, Bundle],
    chance: np.random.Generator,
) -> dict[str, Values]:
    bound = _bound(assignment)
    against = state.get("direction", {}) if kind is Garbage.REVERSED else {}
    values = {}
    for name, start in state["params"].items():
        if bundle == "hessian":
            made = 10 ** chance.uniform(*HESSIAN_EXPONENTS, start.shape)
        else:
            signs = -np.sign(against[name]) if name in against else chance.choice([-1, 1], start.shape)
            made = _JUST_INSIDE * bound.radius * signs - bound.shrinkage * start
        values[name] = _spoilt(kind, np.asarray(made, dtype=np.float32))
    return values


def _spoilt(kind: Garbage, values: Values) -> Values:
    match kind:
        case Garbage.NOT_A_NUMBER:
            return np.full_like(values, np.nan)
        case Garbage.HUGE:
            return np.full_like(values, HUGE)
        case Garbage.WRONG_SHAPE:
            return values.reshape(1, -1)
        case _:
            return values


def _bound(assignment: Assignment) -> DeltaBound:
    settings = assignment.settings
    return DeltaBound.after(
        assignment.local_steps,
        learning_rate=settings["learning_rate"],
        clip_bound=settings["clip_bound"],
        weight_decay=settings["weight_decay"],
    )
