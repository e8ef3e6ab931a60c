# SPDX-License-Identifier: Apache-2.0
"""Options that `worker` and `swarm` share: what they serve, with which data, on which device."""

from typing import Annotated

import typer

TaskName = Annotated[
    str,
    typer.Option(
        "--task", help="What to train: a task of the menu, such as digits or char-lm, or file.py[:Class]."
    ),
]
PartitionScheme = Annotated[
    str | None,
    typer.Option(
        "--partition",
        help="Divide one data set between workers: iid, dirichlet:ALPHA, shards:K, labels:K or groups.",
        show_default="all of it to everyone",
    ),
]
PartitionSeed = Annotated[
    int, typer.Option("--partition-seed", min=0, help="Workers that share it agree on who has what.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of PyTorch.", show_default="PyTorch's own")
]
