# SPDX-License-Identifier: Apache-2.0
"""Tensors a worker keeps between the rounds of a run, on disk, with the round they belong to.

    <directory>/<run>.json               which round, which step, and the digest of the tensors
    <directory>/<run>@<digest>.tensors   a `state` tensor message

The JSON file is the truth: it is replaced in one step after the tensors it names are on disk.
Killed before that, the state is the old one and whole; after it, the new one.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from protocol.codec import Bundle, NamedTensor, decode_message, digest_of, encode_message
from protocol.errors import FedSophiaError, LocalStateCorrupt
from protocol.messages import Digest, Said, parse
from worker.durable import (
    Fsync,
    file_name_for,
    make_private_directory,
    replace_file,
    sync_directory,
    writing,
)


@dataclass(frozen=True)
class Kept:
    """What a worker's optimizer keeps between the rounds of a run."""

    step: int
    """Local steps done so far, over the worker's life in the run."""
    bundles: Mapping[str, Bundle]


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
        self._directory = directory
        self._fsync = fsync
        with writing(directory):
            make_private_directory(directory, fsync)
            for leftover in directory.glob(".*.new"):
                leftover.unlink()

    def runs(self) -> list[str]:
        """The runs for which something is kept."""
        return sorted(path.stem for path in self._directory.glob("*.json"))

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

    def save(self, run_id: str, round_: int, kept: Kept) -> None:
        """Replace what is kept for this run, in one step.

        Raises:
            StateNotWritable: the disk will not have it; what was kept before still is.
        """
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
        with writing(self._directory):
            replace_file(tensors_path, buffers, self._fsync)
            replace_file(self._path(run_id), [description.model_dump_json().encode()], self._fsync)
            self._remove_tensors(run_id, but=tensors_path)

    def take_over(self, other: "LocalState", run_id: str) -> None:
        """Replace what is kept for this run, in one step, by what `other` keeps for it: its files move here.

        Cut off and begun again, it goes on where it was; what has moved already is not asked for twice.

        Raises:
            LocalStateCorrupt: the other's description cannot be read.
            StateNotWritable: the disk will not have it.
        """
        description = other._describe(run_id)
        with writing(self._directory):
            if description is None:  # moved already, maybe by a process that was killed before it could sync
                sync_directory(self._directory, self._fsync)
                mine = self._describe(run_id)
                if mine is not None:  # what it replaced may still be there
                    self._remove_tensors(run_id, but=self._tensors_path(run_id, mine.digest))
                return
            tensors_path = self._tensors_path(run_id, description.digest)
            moving = other._tensors_path(run_id, description.digest)
            if moving.exists():
                moving.replace(tensors_path)
            sync_directory(self._directory, self._fsync)
            other._path(run_id).replace(self._path(run_id))
            sync_directory(self._directory, self._fsync)
            self._remove_tensors(run_id, but=tensors_path)

    def forget(self, run_id: str) -> None:
        """Keep nothing for this run any longer.

        Raises:
            StateNotWritable: the files cannot be removed.
        """
        with writing(self._directory):
            self._path(run_id).unlink(missing_ok=True)
            sync_directory(self._directory, self._fsync)  # what names the tensors goes before they do
            self._remove_tensors(run_id, but=None)

    def _remove_tensors(self, run_id: str, but: Path | None) -> None:
        for stale in self._directory.glob(f"{file_name_for(run_id)}@*.tensors"):
            if stale != but:
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
