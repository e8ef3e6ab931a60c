# SPDX-License-Identifier: Apache-2.0
"""Writes a version's parameters as a safetensors file."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fed_sophia.operator_client import OperatorClient
from fed_sophia.output import Fields
from protocol.codec import decode_message
from protocol.errors import InvalidUsage, NotFound, UnexpectedAnswer


@dataclass(frozen=True)
class Exported:
    """What was written."""

    run: str
    version: int
    params_digest: str
    output: str
    num_tensors: int
    size_bytes: int

    def fields(self) -> Fields:
        return asdict(self)


async def export_version(
    client: OperatorClient, run_id: str, version: int | None, destination: Path
) -> Exported:
    """Fetch the `params` of a version (the last one if None) and write them, whole or not at all.

    Raises:
        NotFound: the run has no such version.
        InvalidUsage: the file cannot be written.
    """
    versions = {each.version: each for each in await client.versions(run_id)}
    number = max(versions, default=0) if version is None else version
    if number not in versions:
        raise NotFound(f"version {number} of run {run_id}: expected one of 0 to {max(versions, default=0)}")
    digest = versions[number].tensors.get("params")
    if digest is None:
        raise UnexpectedAnswer(f"version {number} of run {run_id} names no params")
    params = decode_message(await client.tensors(run_id, digest)).get("params", {})
    file_bytes = save(
        {name: np.ascontiguousarray(values) for name, values in params.items()},
        metadata={"run": run_id, "version": str(number), "digest": digest},
    )
    _write_atomically(destination, file_bytes)
    return Exported(run_id, number, digest, str(destination), len(params), len(file_bytes))


def _write_atomically(destination: Path, content: bytes) -> None:
    part = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(destination)
    except OSError as error:
        raise InvalidUsage(f"{destination} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
