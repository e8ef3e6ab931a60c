# SPDX-License-Identifier: Apache-2.0
"""A coverage-guided fuzz of what reads strangers' bytes.

`python -m tests.hostile.fuzz frame-reader --seconds 60` begins with the target's seeds and with what is kept
in `corpus/frame-reader/`. What it finds lies in `--found`, by default `build/fuzz/frame-reader`: inputs that
reach something new. Anything wrong ends it with another status than 0, and the bytes that show it lie there
too, as `crash-…`, `timeout-…` or `oom-…`. `--keep` then adds to the corpus what of it reaches something new.
"""

import argparse
import random
import sys
from pathlib import Path

import atheris

# not the targets themselves: atheris 3.0 loses the array that an instrumented comparison of arrays gives
with atheris.instrument_imports(include=["protocol"], enable_loader_override=False):
    from tests.hostile import fuzz_encodings, fuzz_frame_reader

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
TARGETS = {"frame-reader": fuzz_frame_reader, "encodings": fuzz_encodings}
SLOWEST_S = 10
MOST_MEMORY_MB = 512
WITH_FORM = 0.5
"""How often a change keeps the form of a message."""


def main() -> None:
    """Fuzz one target for some time, or keep what was found; the fuzzer ends the process itself."""
    arguments, of_the_fuzzer = _arguments()
    target = TARGETS[arguments.target]
    found = arguments.found or ROOT / "build" / "fuzz" / arguments.target
    kept = CORPUS / arguments.target
    options = [f"-max_len={target.MAX_BYTES}", f"-timeout={SLOWEST_S}", f"-rss_limit_mb={MOST_MEMORY_MB}"]
    if of_the_fuzzer:  # it has started itself again, to merge
        options = of_the_fuzzer
    elif arguments.keep:
        options += ["-merge=1", str(kept), str(found)]
    else:
        found.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds()):
            (found / f"seed-{number:04d}").write_bytes(seed)
        options += [f"-seed={arguments.seed}", f"-max_total_time={arguments.seconds}", "-print_final_stats=1"]
        options += [f"-artifact_prefix={found}/", str(found), str(kept)]

    def changed(data: bytes, max_size: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < WITH_FORM:
            data = target.mutated(data, chance)
            if len(data) <= max_size and chance.random() < WITH_FORM:
                return data
        return bytes(atheris.Mutate(data[:max_size], max_size))

    itself = f"{sys.executable} -m tests.hostile.fuzz {arguments.target}"
    atheris.Setup([itself, *options], target.check, custom_mutator=changed)
    atheris.Fuzz()


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    """Ours, and those that are the fuzzer's own."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of what it tries; 0 draws one")
    parser.add_argument("--found", type=Path, help="folder for what it finds")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what was found")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()
