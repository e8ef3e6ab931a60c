# SPDX-License-Identifier: Apache-2.0
"""Tensors a worker keeps between the rounds of a run, on disk, with the round they belong to.

    <directory>/<run>.json               which round, which step, and the digest of the tensors
    <directory>/<run>@<digest>.tensors   a `state` tensor message

The JSON file is the truth: it is replaced in one step after the tensors it names are on disk.
Killed before that, the state is the old one and whole; after it, the new one.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from protocol.codec import NamedTensor, decode_message, digest_of, encode_message
from protocol.errors import FedSophiaError, LocalStateCorrupt
from protocol.messages import Digest, Said, parse
from worker.durable import Fsync, file_name_for, make_private_directory, replace_file


@dataclass(frozen=True)
class Kept:
    """What a worker's optimizer keeps between the rounds of a run."""

    step: int
    """Local steps done so far, over the worker's life in the run."""
    bundles: dict[str, dict[str, npt.NDArray[np.float32]]]


class _Description(Said):
    """What stands in the JSON file."""

    schema_version: Literal[1] = 1
    run_id: str
    round: int = Field(ge=0)
    step: int = Field(ge=0)
    digest: Digest


class LocalState:
    """The kept tensors of every run this worker takes part in."""

    def __init__(self, directory: Path, fsync: Fsync = os.fsync) -> None:
        make_private_directory(directory, fsync)
        self._directory = directory
        self._fsync = fsync
        for leftover in directory.glob(".*.new"):
            leftover.unlink()

    def load(self, run_id: str) -> Kept | None:
        """Give what was kept for this run; None before its first receipt.

        The arrays are read-only views of one buffer.

        Raises:
            LocalStateCorrupt: the files cannot be read as what `save` wrote.
        """
        description = self._describe(run_id)
        if description is None:
            return None
        path = self._tensors_path(run_id, description.digest)
        try:
            message = path.read_bytes()
            if digest_of([message]) != description.digest:
                raise LocalStateCorrupt(_corrupt(run_id, "its tensors do not have the digest noted for them"))
            return Kept(description.step, decode_message(message))
        except OSError as error:
            raise LocalStateCorrupt(_corrupt(run_id, f"its tensors: {error.strerror}")) from None
        except LocalStateCorrupt:
            raise
        except FedSophiaError as error:
            raise LocalStateCorrupt(_corrupt(run_id, error.detail)) from None

    def round_of(self, run_id: str) -> int | None:
        """The round that the kept tensors of this run come from.

        Raises:
            LocalStateCorrupt: the description cannot be read.
        """
        description = self._describe(run_id)
        return None if description is None else description.round

    def save(self, run_id: str, round_: int, kept: Kept) -> None:
        """Replace what is kept for this run, in one step."""
        buffers = encode_message(
            "state",
            (
                NamedTensor(bundle, name, values)
                for bundle, tensors in kept.bundles.items()
                for name, values in tensors.items()
            ),
        )
        description = _Description(run_id=run_id, round=round_, step=kept.step, digest=digest_of(buffers))
        tensors_path = self._tensors_path(run_id, description.digest)
        replace_file(tensors_path, buffers, self._fsync)
        replace_file(self._path(run_id), [description.model_dump_json().encode()], self._fsync)
        for stale in self._directory.glob(f"{file_name_for(run_id)}@*.tensors"):
            if stale != tensors_path:
                stale.unlink()

    def _describe(self, run_id: str) -> _Description | None:
        path = self._path(run_id)
        try:
            description = parse(_Description, path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LocalStateCorrupt(_corrupt(run_id, f"{error.strerror}")) from None
        except FedSophiaError as error:
            raise LocalStateCorrupt(_corrupt(run_id, error.detail)) from None
        if description.run_id != run_id:
            raise LocalStateCorrupt(_corrupt(run_id, f"it says it belongs to run {description.run_id}"))
        return description

    def _path(self, run_id: str) -> Path:
        return self._directory / f"{file_name_for(run_id)}.json"

    def _tensors_path(self, run_id: str, digest: str) -> Path:
        return self._directory / f"{file_name_for(run_id)}@{digest}.tensors"


def _corrupt(run_id: str, why: str) -> str:
    return (
        f"state kept between rounds of run {run_id}: {why}. "
        "Remove local_state/ in the worker's state directory to begin afresh."
    )
