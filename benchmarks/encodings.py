# SPDX-License-Identifier: Apache-2.0
"""What each encoding costs, beside a copy of the same float32 values.

    python -m benchmarks.encodings                              4 million values
    python -m benchmarks.encodings --values 25000000 --json

GB/s are those of the float32 values, in seconds of one core that this had to itself; each number is the
median of some turns, in which all take part one after the other. `× copy` is how many copies of the values
take as long. The last rows are what a worker and the server do with a delta: θ_0 is added before it is
encoded, and taken away after it is decoded.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from fed_sophia.output import Fields, output_for
from protocol.bound import DeltaBound, delta_of
from protocol.encodings import ENCODINGS, Encoding

Float32Array = npt.NDArray[np.float32]
BOUND = DeltaBound.after(10, learning_rate=1.2e-3, clip_bound=10 / 3, weight_decay=1e-3)
SEED = 1


def measure(num_values: int, turns: int) -> list[Fields]:
    """What encoding and decoding took, in the order of the menu, behind the copy."""
    generator = np.random.default_rng(0)
    delta = generator.uniform(-0.9, 0.9, num_values).astype(np.float32) * np.float32(BOUND.radius)
    start = generator.normal(0, 0.1, num_values).astype(np.float32)
    out = np.empty_like(delta)
    works: dict[str, Callable[[], object]] = {"copy": partial(np.copyto, out, delta)}
    for encoding in ENCODINGS.values():
        values = np.square(delta) if encoding.bundle == "hessian" else delta
        constants = BOUND.constants if "shrinkage" in encoding.constants else encoding.constants_for(values)
        payload = encoding.encode(values, constants, SEED)
        works[f"{encoding.name} encode"] = partial(encoding.encode, values, constants, SEED)
        works[f"{encoding.name} decode"] = partial(encoding.decode, payload, out, constants)
    for name in ("bounded_int8", "bounded_int4"):
        payload = ENCODINGS[name].encode(delta, BOUND.constants, SEED)
        works[f"{name}, θ_0 encode"] = partial(encode_delta, ENCODINGS[name], delta, start)
        works[f"{name}, θ_0 decode"] = partial(decode_delta, ENCODINGS[name], payload, start, out)
    seconds = medians(works, turns)
    gb = num_values * 4 / 1e9
    return [
        {"work": name, "gb_per_s": gb / took_s, "copies": took_s / seconds["copy"]}
        for name, took_s in seconds.items()
    ]


def encode_delta(encoding: Encoding, delta: Float32Array, start: Float32Array) -> None:
    encoding.encode(BOUND.from_start("delta", delta, start), BOUND.constants, SEED)


def decode_delta(encoding: Encoding, payload: memoryview, start: Float32Array, out: Float32Array) -> None:
    encoding.decode(payload, out, BOUND.constants)
    delta_of(out, start, BOUND.constants)


def medians(works: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Seconds of each; every turn does all of them."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            begun = time.thread_time()
            work()
            taken[name].append(time.thread_time() - begun)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def table(found: list[Fields]) -> str:
    head = ["work                             GB/s  × copy"]
    return "\n".join(head + ["{work:<27} {gb_per_s:>9.2f} {copies:>7.2f}".format_map(row) for row in found])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--values", type=int, default=4_000_000, help="how many")
    parser.add_argument("--turns", type=int, default=9, help="of which the median is taken")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    found = measure(arguments.values, arguments.turns)
    output_for(arguments.json).summary(table(found), {"values": arguments.values, "encodings": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
