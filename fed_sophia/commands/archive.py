# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia run export` and `run import`: parameters for other programs, whole runs for other servers."""

from pathlib import Path
from typing import Annotated

import typer

from fed_sophia.archive import export_run, import_run
from fed_sophia.commands.asking import ask
from fed_sophia.commands.runs import run_fields, run_sentence
from fed_sophia.export import export_version
from fed_sophia.options import DEFAULT_SERVER, JsonLines, OperatorKeyFile, RunId, Server
from fed_sophia.output import Output, output_for, size_text
from fed_sophia.progress import progress_shown
from fed_sophia.trust_options import NO_CHOICE
from fed_sophia.version_choice import Wanted, wanted_versions
from protocol.errors import InvalidUsage
from protocol.messages import RunStatus
from worker.options import Trust

PARAMETERS, ARCHIVE = ".safetensors", ".tar"

EXPORT_EXAMPLES = """\b
Examples:
  fed-sophia run export RUN --output model.safetensors
  fed-sophia run export RUN --version 10 --output ten.safetensors
  fed-sophia run export RUN --output run.tar
  fed-sophia run export RUN --versions 3,5,8 --output run.tar
"""
IMPORT_EXAMPLES = """\b
Examples:
  fed-sophia run import run.tar
  fed-sophia run import run.tar --name second-half
"""


def export(
    run_id: RunId,
    destination: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="NAME.safetensors for a version's parameters, NAME.tar for the whole run.",
        ),
    ],
    version: Annotated[
        int | None,
        typer.Option(
            help="Of .safetensors: which version; 0 is the first parameters.", show_default="the last"
        ),
    ] = None,
    versions: Annotated[
        str | None,
        typer.Option(
            help="Of .tar: the versions whose tensors go with the history: last, all, none or 3,5,8.",
            show_default="last",
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Write a version's parameters to a safetensors file, or the whole run to an archive."""
    if destination.is_dir():
        raise InvalidUsage(f"--output {destination}: expected a file to write, found a folder")
    output = output_for(json_lines)
    if destination.suffix == ARCHIVE:
        if version is not None:
            raise InvalidUsage(f"--version is of {PARAMETERS} files; for an archive say --versions {version}")
        wanted = wanted_versions("last" if versions is None else versions)
        _export_archive(output, run_id, destination, wanted, server, operator_key_file, trust)
    elif destination.suffix == PARAMETERS:
        if versions is not None:
            raise InvalidUsage(f"--versions is of {ARCHIVE} files; {PARAMETERS} holds one: say --version")
        _export_parameters(output, run_id, destination, version, server, operator_key_file, trust)
    else:
        raise InvalidUsage(
            f"--output {destination}: expected a name that ends in {PARAMETERS} (a version's parameters) "
            f"or in {ARCHIVE} (the whole run)"
        )


def _export_parameters(
    output: Output,
    run_id: str,
    destination: Path,
    version: int | None,
    server: str,
    key_file: Path | None,
    trust: Trust,
) -> None:
    exported = ask(
        server, key_file, trust, lambda client: export_version(client, run_id, version, destination)
    )
    output.summary(
        f"{destination}: version {exported.version}, {exported.num_tensors} tensors, "
        f"{size_text(exported.size_bytes)}",
        exported.fields(),
    )


def _export_archive(
    output: Output,
    run_id: str,
    destination: Path,
    wanted: Wanted,
    server: str,
    key_file: Path | None,
    trust: Trust,
) -> None:
    with progress_shown(output) as report:
        exported = ask(
            server, key_file, trust, lambda client: export_run(client, run_id, wanted, destination, report)
        )
    lacking = (
        ""
        if exported.version in exported.versions
        else f"; without version {exported.version}, the last: only a server that has it can import this"
    )
    output.summary(
        f"{destination}: {exported.rounds} rounds, tensors of {len(exported.versions)} of "
        f"{exported.version + 1} versions, {size_text(exported.size_bytes)}{lacking}",
        exported.fields(),
    )


def import_archive(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="The archive that `run export` wrote.")],
    name: Annotated[
        str | None, typer.Option(help="What to call the new run.", show_default="its name in the archive")
    ] = None,
    server: Server = DEFAULT_SERVER,
    operator_key_file: OperatorKeyFile = None,
    trust: Trust = NO_CHOICE,
    json_lines: JsonLines = False,
) -> None:
    """Make a new run of an archive: its history, and a pause where it had not ended."""
    output = output_for(json_lines)
    with progress_shown(output) as report:
        imported = ask(
            server, operator_key_file, trust, lambda client: import_run(client, source, name, report)
        )
    run = imported.run
    paused = run.status is RunStatus.PAUSED
    output.summary(
        run_sentence(run) + (f"\nIt goes on with: fed-sophia run resume {run.run_id}" if paused else ""),
        run_fields(run) | {"tensors_sent": imported.tensors_sent, "tensors_known": imported.tensors_known},
    )
