# SPDX-License-Identifier: Apache-2.0
"""Options that `worker` and `swarm` share: what they serve, with which data, on which device."""

from typing import Annotated

import typer

TaskName = Annotated[
    str,
    typer.Option(
        "--task", help="What to train: fashion-mnist-mlp, fashion-mnist-cnn, digits, or file.py[:Class]."
    ),
]
PartitionScheme = Annotated[
    str | None,
    typer.Option(
        "--partition",
        help="Divide one data set between workers: iid, dirichlet:ALPHA or shards:K.",
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
