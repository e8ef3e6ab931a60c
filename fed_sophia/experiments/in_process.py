# SPDX-License-Identifier: Apache-2.0
"""The engine without a wire: all workers of a trial in this process, their models stacked."""

import threading
import time
from pathlib import Path

from fed_sophia.experiments.attacks import Forgers
from fed_sophia.experiments.data import OnThisMachine
from fed_sophia.experiments.engine import Engine, Evaluated, Outcome, Report
from fed_sophia.experiments.simulation import Simulation
from fed_sophia.experiments.trials import Trial
from fed_sophia.interruptible import signals_noted
from fed_sophia.new_run import prepare
from protocol.codec import decode_message
from protocol.errors import NotFinite, QuorumMissing
from worker.energy import EnergyMeter, counters_for
from worker.machine import device_uuid, intra_op_threads, whole_float32
from worker.trial_data import TrialData, TrialEvaluator

STACK_ON_CPU = 8
"""Workers in a stack: a larger one outgrows a processor's caches."""
STACK_ON_DEVICE = 1024


class InProcess(OnThisMachine):
    """Trains by `Simulation`."""

    name = "in-process"

    def run(self, trial: Trial, report: Report) -> Outcome:
        """Train, in this thread and those of the stacks.

        Raises:
            Interrupted: a signal came.
            FedSophiaError: it cannot be trained here at all.
        """
        data, forgers = self._data(trial), None
        if trial.attack is not None:
            forgers = Forgers.last(trial.attack, trial.attackers, trial.workers)
            if forgers.attack.flips_labels:
                data = data.with_flipped_labels(forgers.slots)
        spec, message = prepare(self._data.request(trial))
        params = decode_message(b"".join(message))["params"]
        on_cpu = self._device.type == "cpu"
        trainer = data.stacked_trainer(
            self._device,
            stack=STACK_ON_CPU if on_cpu else STACK_ON_DEVICE,
            threads=self._threads if on_cpu else 1,
        )
        # whoever is honest passes: without forgers there is nobody to judge
        admission = forgers is not None and trial.admission
        simulation = Simulation(spec, params, trainer, trial.workers, forgers, admission=admission)
        with signals_noted() as stop, whole_float32():
            return self._rounds(trial, data, simulation, report, stop)

    def _rounds(
        self, trial: Trial, data: TrialData, simulation: Simulation, report: Report, stop: threading.Event
    ) -> Outcome:
        evaluator = TrialEvaluator(data, self._device, iterate_average=trial.iterate_average)
        counters = counters_for(device_uuid(self._device))
        seconds, joules, examples, failure = 0.0, 0.0, 0, None
        for number in range(1, trial.rounds + 1):
            meter, begun = EnergyMeter(counters), time.perf_counter()
            try:
                with intra_op_threads(1 if self._device.type == "cpu" else self._threads):
                    simulation.advance(stop)
                seconds += time.perf_counter() - begun
                joules += meter.joules() or 0.0
                examples += trial.cohort_size * trial.local_steps * trial.batch_size
                evaluator.note(simulation.state["params"])
                if trial.is_evaluated(number):
                    with intra_op_threads(self._threads):
                        metrics = evaluator.metrics(stop)
                    traffic = simulation.bytes_up, simulation.bytes_down
                    report(Evaluated(number, seconds, *traffic, metrics))
            except (NotFinite, QuorumMissing) as error:
                failure = f"round {number}: {error.detail}"
                break
        return Outcome(seconds, examples, joules if counters else None, data.digest, failure)


def make_engine(device: str, threads: int | None, data_dir: Path | None) -> Engine:
    """The engine on a device as `choose_device` names it; None takes all the cores there are.

    Raises:
        DeviceUnavailable: this machine has no such device.
    """
    return InProcess(device, threads, data_dir)
