# SPDX-License-Identifier: Apache-2.0
"""What an aggregation takes, against this machine's memory bandwidth and against the plainest code.

    python -m benchmarks.aggregation                            25 MB from 8 workers
    python -m benchmarks.aggregation --mb 100 --workers 2 --json

Two things are measured, each against a floor of its own; all take turns, and each number is a median.

    mean        updates that lie in memory → their mean, by the server's own combiner and threads.
                floor: the memory itself, the better of reading the updates and of copying them, with 1 to as
                many threads as there are cores; what is read and what is written count alike
    aggregate   the whole of `aggregate()`: updates in files of the store → the next version, durable.
                floor: one thread that reads the same files, hashes, writes and syncs as many bytes as the
                next version has, and adds nothing

The files are in the system's cache, where an upload has left them. Linux only for what is said of cores.
"""

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.exchange.rounds import Plan
from fed_sophia.output import Fields, output_for
from protocol.algorithms import algorithm_named
from protocol.codec import NamedTensor, digest_of, encode_message
from protocol.header import Kind
from protocol.messages import RunSpec, TensorSpec, UpdateHeader
from ps_service.aggregation import ROWS_IN_TURN, AdmittedUpdate, aggregate, elements_at_a_time
from ps_service.allocator import keep_freed_memory
from ps_service.combiners.mean import mean
from ps_service.combining import Part, parts
from ps_service.in_order import cores, in_order
from ps_service.storage.files import FileBlobs

Float32Array = npt.NDArray[np.float32]
READ_BYTES = 1024 * 1024


@dataclass
class InMemory:
    """Updates as rows of arrays, and room for what is made of them."""

    rows: list[Float32Array]
    made: Float32Array
    copies: list[Float32Array]

    @property
    def read_bytes(self) -> int:
        return sum(row.nbytes for row in self.rows)


def in_memory(workers: int, elements: int) -> InMemory:
    generator = np.random.default_rng(0)
    rows = [generator.random(elements, dtype=np.float32) for _ in range(workers)]
    return InMemory(rows, np.zeros_like(rows[0]), [np.zeros_like(row) for row in rows])


# --- memory alone, and the mean ------------------------------------------------------------------


def copy_all(memory: InMemory, threads: int) -> None:
    _each(memory, threads, lambda row, copy: np.copyto(copy, row))


def read_all(memory: InMemory, threads: int) -> None:
    _each(memory, threads, lambda row, _: row.max())


def _each(memory: InMemory, threads: int, work: Callable[[Float32Array, Float32Array], object]) -> None:
    """All rows, each cut into as many pieces as there are threads."""

    def piece(number: int) -> None:
        for row, copy in zip(memory.rows, memory.copies, strict=True):
            bounds = [row.size * at // threads for at in (number, number + 1)]
            work(row[slice(*bounds)], copy[slice(*bounds)])

    running = [threading.Thread(target=piece, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def mean_of(memory: InMemory, threads: int) -> None:
    """As an aggregation does it, a part in each thread; nobody hashes and writes what is made."""
    weights = np.full(len(memory.rows), 1 / len(memory.rows), dtype=np.float32)
    whole = [TensorSpec(name="w", shape=memory.made.shape)]

    def make(part: Part) -> None:
        values = mean((row[part.start : part.stop] for row in memory.rows), weights)
        memory.made[part.start : part.stop] = values

    elements = elements_at_a_time(ROWS_IN_TURN, threads)
    in_order(parts(whole, elements), make, lambda _: None, threads)


# --- the whole aggregation -----------------------------------------------------------------------


class Stored:
    """A closed round in a store of files."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.blobs = FileBlobs(folder)
        self.folder = folder
        self.spec = RunSpec(
            name="aggregation",
            task="none",
            algorithm=plan.algorithm,
            model=plan.model,
            params_digest="0" * 64,
            rounds=1,
            cohort_size=plan.workers,
            quorum=1,
        )
        self.params = self._store("state", ["params"], 0)
        hyperparameters = algorithm_named(plan.algorithm).parse(self.spec.hyperparameters)
        bundles = hyperparameters.bundles_wanted(1)
        self.updates = [self._update(slot, bundles) for slot in range(plan.workers)]
        self.rows = dict.fromkeys(bundles, self.updates)
        self.made: dict[str, str] = {}

    def _store(self, kind: Kind, bundles: Sequence[str], seed: int) -> str:
        generator = np.random.default_rng(seed)
        tensors = [
            NamedTensor(bundle, tensor.name, generator.random(tensor.num_elements, dtype=np.float32))
            for bundle in bundles
            for tensor in self.spec.model
        ]
        buffers = encode_message(kind, tensors)
        digest, staged = digest_of(buffers), self.blobs.stage()
        for buffer in buffers:
            staged.write(buffer)
        staged.seal(digest)
        return digest

    def _update(self, slot: int, bundles: tuple[str, ...]) -> AdmittedUpdate:
        digest = self._store("update", bundles, 1 + slot)
        header = UpdateHeader(
            digest=digest,
            size_bytes=self.blobs.size(digest) or 0,
            bundles=bundles,
            encodings=dict.fromkeys(bundles, "f32"),
            num_examples=1,
            local_steps=self.spec.local_steps,
        )
        return AdmittedUpdate(digest, header, self.params, slot)

    def aggregate(self, threads: int | None) -> None:
        tensors = {"params": self.params}
        self.made = aggregate(self.blobs, self.spec, tensors, self.rows, partial=False, threads=threads)

    def forget(self) -> None:
        """Delete what was made, so that the next turn makes it again."""
        for digest in self.made.values():
            self.blobs.delete(digest)

    @property
    def files(self) -> list[Path]:
        return [self.blobs.path(digest) for digest in (self.params, *(each.digest for each in self.updates))]


def plain(stored: Stored) -> dict[str, float]:
    """Seconds of the plainest code for the same files: {step: seconds}."""
    buffer, began_s = memoryview(bytearray(READ_BYTES)), time.perf_counter()
    for path in stored.files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    read_s = time.perf_counter()
    size_bytes = stored.files[0].stat().st_size
    made = memoryview(bytearray(os.urandom(READ_BYTES)) * (size_bytes // READ_BYTES + 1))[:size_bytes]
    hash_from_s = time.perf_counter()
    hashlib.sha256(made)
    hashed_s = time.perf_counter()
    with tempfile.TemporaryFile(dir=stored.folder, buffering=0) as file:
        for start in range(0, size_bytes, READ_BYTES):
            file.write(made[start : start + READ_BYTES])
        written_s = time.perf_counter()
        os.fsync(file.fileno())
        synced_s = time.perf_counter()
    return {
        "read": read_s - began_s,
        "sha256": hashed_s - hash_from_s,
        "write": written_s - hashed_s,
        "fsync": synced_s - written_s,
    }


# --- figures -------------------------------------------------------------------------------------


def measure(plan: Plan, repeats: int, threads: int | None, folder: Path) -> Fields:
    """All works in turn, and then again: medians, and what they are of their floors."""
    memory = in_memory(plan.workers, plan.model_bytes // 4)
    stored = Stored(plan, folder)
    counts = range(1, cores() + 1)
    works: dict[str, Callable[[], None]] = {}
    for count in counts:
        works[f"read {count}"] = partial(read_all, memory, count)
        works[f"copy {count}"] = partial(copy_all, memory, count)
        works[f"mean {count}"] = partial(mean_of, memory, count)
    took: dict[str, list[float]] = {name: [] for name in (*works, "aggregate")}
    steps: list[dict[str, float]] = []
    for _ in range(repeats + 1):  # the first makes ready what is used, and is left out
        for name, work in works.items():
            took[name].append(seconds(work))
        os.sync()  # what others have written is not charged to these
        steps.append(plain(stored))
        os.sync()
        took["aggregate"].append(seconds(partial(stored.aggregate, threads)))
        stored.forget()
    median_s = {name: statistics.median(each[1:]) for name, each in took.items()}
    floor = {step: statistics.median(each[step] for each in steps[1:]) for step in steps[0]}
    floor_s = statistics.median(sum(each.values()) for each in steps[1:])
    read = {f"read {count}": memory.read_bytes / 1e9 / median_s[f"read {count}"] for count in counts}
    copied = {f"copy {count}": 2 * memory.read_bytes / 1e9 / median_s[f"copy {count}"] for count in counts}
    bandwidth = max((read | copied).values())
    moved = (memory.read_bytes + memory.made.nbytes) / 1e9
    means = {count: moved / median_s[f"mean {count}"] for count in counts}
    return {
        "mb": plan.megabytes,
        "workers": plan.workers,
        "algorithm": plan.algorithm,
        "repeats": repeats,
        "cores": cores(),
        "memory_gb_per_s": bandwidth,
        "memory_gb_per_s_each": read | copied,
        "mean_gb_per_s_by_threads": means,
        "mean_of_bandwidth": max(means.values()) / bandwidth,
        "aggregate_s": median_s["aggregate"],
        "floor_s": floor_s,
        "floor_s_by_step": floor,
        "floor_of_aggregate": floor_s / median_s["aggregate"],
        "aggregate_of_bandwidth": moved / median_s["aggregate"] / bandwidth,
        "aggregate_s_each": took["aggregate"][1:],
    }


def seconds(work: Callable[[], None]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def text(fields: Fields) -> str:
    means = fields["mean_gb_per_s_by_threads"].items()  # type: ignore[attr-defined]
    steps = fields["floor_s_by_step"].items()  # type: ignore[attr-defined]
    return "\n".join(
        [
            f"{fields['mb']:g} MB × {fields['workers']}, {fields['algorithm']}, {fields['cores']} cores",
            f"memory     {fields['memory_gb_per_s']:.1f} GB/s",
            f"mean       {100 * fields['mean_of_bandwidth']:.0f} % of it ("  # type: ignore[operator]
            + ", ".join(f"{count} threads {rate:.1f} GB/s" for count, rate in means)
            + ")",
            f"aggregate  {1000 * fields['aggregate_s']:.0f} ms; "  # type: ignore[operator]
            f"its floor {1000 * fields['floor_s']:.0f} ms ("  # type: ignore[operator]
            + ", ".join(f"{step} {1000 * took_s:.0f}" for step, took_s in steps)
            + f"): {100 * fields['floor_of_aggregate']:.0f} %",  # type: ignore[operator]
        ]
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.aggregation", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--mb", type=float, default=25, help="size of the model, 10^6 bytes")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--algorithm", default="fedavg", help="of the whole aggregation")
    parser.add_argument("--repeats", type=int, default=11, help="medians are of so many")
    parser.add_argument("--threads", type=int, help="of the whole aggregation, beside its own")
    parser.add_argument("--folder", type=Path, help="where to make files; without it, among temporary ones")
    parser.add_argument("--json", action="store_true", help="JSON lines for machines; the last is a summary")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    keep_freed_memory()  # as a server does
    plan = Plan(given.mb, given.workers, 1, given.algorithm)
    with tempfile.TemporaryDirectory(prefix="fed-sophia-aggregation-", dir=given.folder) as name:
        fields = measure(plan, given.repeats, given.threads, Path(name))
    output_for(given.json).summary(text(fields), fields)
    return 0


if __name__ == "__main__":
    sys.exit(main())
