# SPDX-License-Identifier: Apache-2.0
"""NVFlare's own FedAvg workflow with a given model, and a note of when each round began and ended."""

import time
from pathlib import Path
from typing import Any

import nvflare
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg

from benchmarks.peers.workload import largest_error, model, write_report


class TimedFedAvg(FedAvg):
    """FedAvg; a round lasts from the beginning of `sample_clients` to the end of `update_model`.

    The arguments are public attributes, because NVFlare writes them into the job from there.
    """

    def __init__(self, num_clients: int, num_rounds: int, mb: float, report: str) -> None:
        super().__init__(num_clients=num_clients, num_rounds=num_rounds, persistor_id="")
        self.mb = mb
        self.report = report
        self._rounds: list[tuple[float, float, int]] = []
        self._began_s = 0.0
        self._final: dict[str, Any] = {}

    def run(self) -> None:
        """Run all rounds; report, whatever happens."""
        path = Path(self.report)
        try:
            super().run()
            if len(self._rounds) < self.num_rounds:
                write_report(
                    path, {"error": f"it ended after {len(self._rounds)} of {self.num_rounds} rounds"}
                )
            else:
                write_report(path, self._found())
        except Exception as error:
            write_report(path, {"error": f"{type(error).__name__}: {error}"})
            raise

    def _found(self) -> dict[str, object]:
        arrays = [self._final[name] for name in sorted(self._final)]
        return {
            "version": nvflare.__version__,
            "rounds": self._rounds,
            "failures": [],
            "largest_error": largest_error(arrays, model(self.mb), self.num_clients, self.num_rounds),
        }

    def load_model(self) -> FLModel:
        return FLModel(params={f"array-{number:02d}": array for number, array in enumerate(model(self.mb))})

    def sample_clients(self, num_clients: int | None = None) -> Any:
        self._began_s = time.monotonic()
        return super().sample_clients(num_clients)

    def update_model(self, global_model: FLModel, aggregate: FLModel, *given: Any) -> FLModel:
        updated = super().update_model(global_model, aggregate, *given)
        self._rounds.append((self._began_s, time.monotonic(), int(aggregate.meta["nr_aggregated"])))
        return updated

    def save_model(self, global_model: FLModel) -> None:
        """Keep it in memory: the disk is no part of what is measured."""
        self._final = global_model.params
