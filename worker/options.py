# SPDX-License-Identifier: Apache-2.0
"""What a user chooses for one worker, or for a swarm of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Trust:
    """By what the server proves itself to us, and we to the server."""

    ca: Path | None = None
    """Believe this CA alone; None: the one that is pinned, or else those of the system."""
    client_cert: Path | None = None
    """For a server that asks for one."""
    client_key: Path | None = None
    """None: it is in the file of the certificate."""
    insecure: bool = False
    """Whether plain HTTP may be spoken with another machine."""


@dataclass(frozen=True)
class Numerics:
    """How a worker computes its local steps: each gives the same but for rounding and for what is drawn."""

    precision: Precision = "float32"
    """Of the products in the model. With bfloat16, parameters, steps and sums stay float32."""
    micro_batch: int | None = None
    """Examples that go through the model at a time; None: the whole mini-batch."""
    compile: bool = False
    """Whether the model is compiled: faster on a GPU after some tens of seconds."""
    record: bool = False
    """Whether the way through the model is recorded on a CUDA device, and played again at each step."""
    recompute: bool = False
    """Whether a model's blocks are computed a second time in place of keeping what is in them."""


@dataclass(frozen=True)
class WorkerOptions:
    """One worker: which server, which task, whose data, on what machine."""

    server_url: str
    join_token: str | None
    """Needed at the first start in a state directory, and not later."""
    name: str
    state_dir: Path
    task: str
    """A name of the menu, or path/to/file.py[:ClassName]."""
    data_dir: Path | None = None
    partition: str | None = None
    """`iid`, `dirichlet:ALPHA`, `shards:K`, `labels:K` or `groups`; None keeps all the data of this place."""
    partition_index: int = 0
    partition_of: int = 1
    partition_seed: int = 0
    device: str = "auto"
    threads: int | None = None
    numerics: Numerics = Numerics()
    max_assignments: int | None = None
    """Stop after so many; None goes on until cancelled."""
    rotate_key: bool = False
    """Put a new key in the place of its own at the start."""
    trust: Trust = Trust()


@dataclass(frozen=True)
class SwarmOptions:
    """Many workers in one process, each with a part of one data set."""

    server_url: str
    join_token: str | None
    """Needs a use for every worker."""
    state_dir: Path
    """Each worker has its own folder in it."""
    task: str
    num_workers: int
    first_index: int = 0
    """Part and number of the first worker, where several swarms share a data set."""
    of: int | None = None
    """Parts of the data set in all; None means first_index + num_workers."""
    name_prefix: str = "swarm"
    evaluator_token: str | None = None
    """Adds one evaluator."""
    data_dir: Path | None = None
    partition: str | None = "iid"
    partition_seed: int = 0
    device: str = "auto"
    threads: int | None = None
    parallel_training: int = 1
    """How many workers, or stacks of them, train at the same time."""
    stack: int | None = None
    """How many workers' models are stacked and trained as one, at most; None: what suits the device."""
    max_assignments: int | None = None
    """Of every trainer. The evaluator goes on until the trainers have done theirs."""
    trust: Trust = Trust()

    @property
    def indices(self) -> range:
        return range(self.first_index, self.first_index + self.num_workers)

    def member(self, index: int) -> WorkerOptions:
        """The worker with this part of the data."""
        # padded: the server gives slots in the order of names
        return self._worker(f"{self.name_prefix}-{index:05d}", self.join_token, index, self.max_assignments)

    def evaluator(self) -> WorkerOptions:
        return self._worker(f"{self.name_prefix}-evaluator", self.evaluator_token, 0, None)

    def _worker(
        self, name: str, join_token: str | None, index: int, max_assignments: int | None
    ) -> WorkerOptions:
        return WorkerOptions(
            server_url=self.server_url,
            join_token=join_token,
            name=name,
            state_dir=self.state_dir / name,
            task=self.task,
            data_dir=self.data_dir,
            partition=self.partition,
            partition_index=index,
            partition_of=self.indices.stop if self.of is None else self.of,
            partition_seed=self.partition_seed,
            device=self.device,
            threads=self.threads,
            max_assignments=max_assignments,
            trust=self.trust,
        )
