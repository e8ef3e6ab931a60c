# SPDX-License-Identifier: Apache-2.0
"""Writes a version's parameters as a safetensors file."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from fed_sophia.operator_client import OperatorClient
from fed_sophia.output import Fields
from fed_sophia.version_choice import chosen
from fed_sophia.whole_file import whole_file
from protocol.codec import decode_message
from protocol.errors import UnexpectedAnswer


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
        NotFound: the run has no such version, or keeps it no longer.
        InvalidUsage: the file cannot be written.
    """
    versions = await client.versions(run_id)
    (number,) = chosen("last" if version is None else (version,), run_id, versions)
    digest = versions[number].tensors.get("params")
    if digest is None:
        raise UnexpectedAnswer(f"version {number} of run {run_id} names no params")
    params = decode_message(await client.tensors(run_id, digest)).get("params", {})
    file_bytes = save(
        {name: np.ascontiguousarray(values) for name, values in params.items()},
        metadata={"run": run_id, "version": str(number), "digest": digest},
    )
    with whole_file(destination) as file:
        file.write(file_bytes)
    return Exported(run_id, number, digest, str(destination), len(params), len(file_bytes))
