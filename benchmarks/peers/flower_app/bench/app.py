# SPDX-License-Identifier: Apache-2.0
"""Flower's own FedAvg with a client that does not train, and a note of when each round began and ended."""

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flwr
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.peers.workload import largest_error, model, update, write_report

LOOK_S = 0.2
client = ClientApp()
server = ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Return what came, plus a constant."""
    index = int(context.node_config["partition-id"])
    arrays, weight = update(message.content["arrays"].to_numpy_ndarrays(), index)
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": weight})}
    return Message(RecordDict(content), reply_to=message)


class TimedFedAvg(FedAvg):
    """FedAvg; a round lasts from the beginning of `configure_train` to the end of `aggregate_train`."""

    def __init__(self, workers: int) -> None:
        super().__init__(fraction_evaluate=0.0, min_train_nodes=workers, min_available_nodes=workers)
        self.rounds: list[tuple[float, float, int]] = []
        """(begun, ended, replies), the times by the machine's monotonic clock."""
        self.failures: list[str] = []
        self._began_s = 0.0

    def configure_train(self, *given: Any, **named: Any) -> Iterable[Message]:
        self._began_s = time.monotonic()
        return super().configure_train(*given, **named)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        came = list(replies)
        failures = [str(reply.error) for reply in came if reply.has_error()]
        aggregated = super().aggregate_train(server_round, came)
        self.rounds.append((self._began_s, time.monotonic(), len(came) - len(failures)))
        self.failures += failures
        return aggregated


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds once every worker is there; report, whatever happens."""
    path = Path(str(context.run_config["report"]))
    try:
        write_report(path, _run(grid, context))
    except Exception as error:
        write_report(path, {"error": f"{type(error).__name__}: {error}"})
        raise


def _run(grid: Grid, context: Context) -> dict[str, object]:
    config = context.run_config
    workers, rounds = int(config["workers"]), int(config["rounds"])
    while len(list(grid.get_node_ids())) < workers:  # until our time limit, which is the measurement's
        time.sleep(LOOK_S)
    mb, strategy = float(config["mb"]), TimedFedAvg(workers)
    initial = ArrayRecord(model(mb))
    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds, train_config=ConfigRecord())
    if strategy.failures:  # there may be no aggregate
        error = math.inf
    else:
        error = largest_error(result.arrays.to_numpy_ndarrays(), model(mb), workers, rounds)
    return {
        "version": flwr.__version__,
        "rounds": strategy.rounds,
        "failures": strategy.failures,
        "largest_error": error,
    }
