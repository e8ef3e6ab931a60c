# SPDX-License-Identifier: Apache-2.0
"""Writes the job that NVFlare is given.

python -m benchmarks.peers.nvflare_app.job MB WORKERS ROUNDS REPORT FOLDER
"""

import sys
from pathlib import Path

from nvflare.client.config import ExchangeFormat
from nvflare.fuel.utils.constants import FrameworkType
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner

from benchmarks.peers.nvflare_app import JOB_NAME
from benchmarks.peers.nvflare_app.controller import TimedFedAvg


def export(mb: float, workers: int, rounds: int, report: str, folder: str) -> None:
    """Write the job below `folder`, under its name."""
    job = FedJob(name=JOB_NAME)
    job.to_server(TimedFedAvg(num_clients=workers, num_rounds=rounds, mb=mb, report=report))
    job.to_clients(
        ScriptRunner(
            script=str(Path(__file__).with_name("worker.py")),
            framework=FrameworkType.NUMPY,
            server_expected_format=ExchangeFormat.NUMPY,
        )
    )
    job.export_job(folder)


if __name__ == "__main__":
    export(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6])
