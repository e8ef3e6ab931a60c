# SPDX-License-Identifier: Apache-2.0
"""Takes a whole run from a server into an archive, and from an archive to a server."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from fed_sophia.archive_file import ArchiveReader, ArchiveWriter, Place, chunks_at
from fed_sophia.operator_client import OperatorClient
from fed_sophia.output import Fields
from fed_sophia.progress import Progress, Report
from fed_sophia.version_choice import Wanted, chosen
from fed_sophia.whole_file import whole_file
from protocol.errors import InvalidMessage, InvalidUsage, NotFound, UnexpectedAnswer, UnknownTensors
from protocol.messages import RunSpec, RunSummary, parse
from protocol.run_archive import ArchivedRound, ArchivedVersion, RunArchive


@dataclass(frozen=True)
class ExportedRun:
    """What was written."""

    run: str
    output: str
    rounds: int
    version: int
    versions: tuple[int, ...]
    """Those whose tensors are in the archive."""
    num_tensors: int
    size_bytes: int

    def fields(self) -> Fields:
        return asdict(self)


@dataclass(frozen=True)
class ImportedRun:
    """The new run, and what had to be sent for it."""

    run: RunSummary
    tensors_sent: int
    tensors_known: int


# --- export -------------------------------------------------------------------------------------


async def export_run(
    client: OperatorClient, run_id: str, wanted: Wanted, destination: Path, report: Report
) -> ExportedRun:
    """Write a run's archive, whole or not at all; a tensor is held in chunks.

    Raises:
        NotFound: there is no such run, or no such version any more.
        InvalidUsage: the file cannot be written.
    """
    archive = await archive_of(client, run_id, wanted)
    digests = archive.digests_of(archive.included)
    with whole_file(destination) as file:
        writer = ArchiveWriter(file)
        writer.document(archive)
        for number, (digest, version) in enumerate(digests.items(), start=1):
            try:
                async with client.tensor_chunks(run_id, digest) as (size_bytes, chunks):
                    writer.tensor(digest, size_bytes)
                    async for chunk in chunks:
                        writer.write(chunk)
                        report(Progress("fetching", number, len(digests), writer.size_bytes))
            except NotFound as error:
                raise NotFound(
                    f"version {version}: {error.detail}; if it was collected meanwhile, pause the run first"
                ) from None
        writer.end()
    return ExportedRun(
        run_id,
        str(destination),
        len(archive.rounds),
        archive.version,
        archive.included,
        len(digests),
        writer.size_bytes,
    )


async def archive_of(client: OperatorClient, run_id: str, wanted: Wanted) -> RunArchive:
    """What a run is and what became of its rounds that have ended; they go on ending meanwhile.

    Raises:
        NotFound: there is no such run, or no such version any more.
    """
    ended = None
    while True:
        run = await client.run(run_id)
        if run.status.ended == ended:
            break
        # asked for after the status and before the next: if the run has ended these are all there will be
        ended = run.status.ended
        rounds = await client.rounds(run_id)
        versions = await client.versions(run_id)
    finished = list(takewhile(lambda round_: round_.status.ended, rounds))
    versions = versions[: 1 + sum(round_.version is not None for round_ in finished)]
    of_round, of_version = set(ArchivedRound.model_fields), set(ArchivedVersion.model_fields)
    try:
        return parse(
            RunArchive,
            {
                "spec": run.spec,
                "status": run.status,
                "reason": run.reason,
                "created_ms": run.created_ms,
                "ended_ms": run.ended_ms,
                "rounds": tuple(round_.model_dump(include=of_round) for round_ in finished),
                "versions": tuple(version.model_dump(include=of_version) for version in versions),
                "included": chosen(wanted, run_id, versions),
            },
        )
    except InvalidMessage as error:
        raise UnexpectedAnswer(f"the history of run {run_id} does not fit together: {error.detail}") from None


# --- import -------------------------------------------------------------------------------------


async def import_run(client: OperatorClient, source: Path, name: str | None, report: Report) -> ImportedRun:
    """Check an archive, send the tensors that the server lacks, and make a run of it.

    Raises:
        InvalidUsage: there is no such file.
        InvalidMessage: the name is none that a run may have.
        The errors of `ArchiveReader`; then nothing was sent.
        UnknownTensors: the archive does not hold the tensors of the last version, nor does the server.
    """
    with _opened(source) as file:
        archive, places = await _checked(file, report)
        if name is not None:
            archive = _renamed(archive, name)
        sent = await _send_lacking(client, file, places, report)
        try:
            run = await client.import_run(archive)
        except UnknownTensors as error:
            # tensors that no run names are collected some time: while the others were sent, perhaps
            again = await _send_lacking(client, file, places, report)
            if not again and archive.version not in archive.included:
                raise UnknownTensors(
                    f"{error.detail}; the archive holds no tensors of version {archive.version}, the last"
                ) from None
            sent |= again
            run = await client.import_run(archive)
    return ImportedRun(run, len(sent), len(places) - len(sent))


def _opened(source: Path) -> BinaryIO:
    if not source.is_file():
        raise InvalidUsage(f"{source}: expected an archive, as `fed-sophia run export` writes it")
    return source.open("rb")


async def _checked(file: BinaryIO, report: Report) -> tuple[RunArchive, dict[str, Place]]:
    reader = ArchiveReader(file)
    for position in reader.check():
        report(Progress("checking", len(reader.places), len(reader.expected), position))
        await asyncio.sleep(0)  # Ctrl-C is heard here
    return reader.archive, reader.places


def _renamed(archive: RunArchive, name: str) -> RunArchive:
    return archive.model_copy(update={"spec": parse(RunSpec, archive.spec.model_dump() | {"name": name})})


async def _send_lacking(
    client: OperatorClient, file: BinaryIO, places: dict[str, Place], report: Report
) -> set[str]:
    """Send the tensors that the server does not have; give their digests."""
    lacking = [digest for digest in places if not await client.has_tensors(digest)]
    sent_bytes = 0

    async def chunks(number: int, place: Place) -> AsyncIterator[bytes]:
        nonlocal sent_bytes
        for chunk in chunks_at(file, place):
            yield chunk
            sent_bytes += len(chunk)
            report(Progress("sending", number, len(lacking), sent_bytes))

    for number, digest in enumerate(lacking, start=1):
        place = places[digest]
        await client.put_tensor_chunks(digest, place.size_bytes, chunks(number, place))
    return set(lacking)
