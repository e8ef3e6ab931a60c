# SPDX-License-Identifier: Apache-2.0
"""What a trial becomes before it is trained: divided data, and the run that an operator would ask for."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from fed_sophia.experiments.trials import Trial
from fed_sophia.new_run import RunRequest
from worker.machine import choose_device, description, usable_cores
from worker.trial_data import TrialData

_ROUND_S = 86_400.0
"""No round is given up for being slow."""


class DataOfTrials:
    """Loads and divides; the trial that follows usually needs the same again."""

    def __init__(self, data_dir: Path | None) -> None:
        self._data_dir = data_dir
        self._divided = lru_cache(maxsize=1)(self._divide)

    def __call__(self, trial: Trial) -> TrialData:
        """Raises: FedSophiaError: the task or its data cannot be had, or cannot be divided so."""
        return self._divided(
            trial.task, trial.partition, trial.workers, trial.seed, trial.validation, trial.validation_seed
        )

    def _divide(
        self, task: str, partition: str, workers: int, seed: int, validation: int, validation_seed: int
    ) -> TrialData:
        return TrialData.divided(
            task,
            self._data_dir,
            partition,
            workers,
            seed,
            validation=validation,
            validation_seed=validation_seed,
        )

    def request(self, trial: Trial) -> RunRequest:
        """The run: every update of a round counts, so that equal seeds give equal models.

        A round that comes to nothing ends it: held again it would have other seeds than in a simulation.
        Where some workers are dishonest it goes on without their updates.
        """
        return RunRequest(
            task=trial.task,
            name=f"{trial.scenario}-{trial.key}",
            rounds=trial.rounds,
            policies={
                "cohort_size": trial.cohort_size,
                "min_workers": trial.workers,
                "quorum": max(1, trial.cohort_size - trial.attackers),
                "max_delta_norm": trial.max_delta_norm,
                "max_abandoned_rounds": 1,
                "deadline_s": _ROUND_S,
            },
            algorithm=trial.algorithm,
            local_steps=trial.local_steps,
            batch_size=trial.batch_size,
            seed=trial.seed,
            hyperparameters=dict(trial.hyperparameters),
            combiners=dict(trial.combiners),
            encodings=dict(trial.encodings),
            data_dir=self._data_dir,
        )


class OnThisMachine:
    """What every engine here is made with: a device, the threads it may use, and the data of its trials."""

    def __init__(self, device: str, threads: int | None, data_dir: Path | None) -> None:
        """Args:
        device: as `choose_device` names it.
        threads: None takes all the cores there are.

        Raises:
            DeviceUnavailable: this machine has no such device.
        """
        self._device = choose_device(device)
        self._threads = threads or usable_cores()
        self._data = DataOfTrials(data_dir)

    @property
    def environment(self) -> Mapping[str, str | int]:
        return description(self._device, self._threads)
