# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia doctor`: checks what a server would need, and says in words what is wrong and what to do."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from fed_sophia.extras import needing
from fed_sophia.options import JsonLines
from fed_sophia.output import Output, one_line, output_for
from fed_sophia.server_settings import problems

if TYPE_CHECKING:
    from ps_service.doctor.finding import Finding

EXAMPLES = """\b
Examples:
  fed-sophia doctor
  fed-sophia doctor --data-dir /srv/fed-sophia --json
  fed-sophia doctor --host 0.0.0.0 --tls-cert chain.pem --tls-key server.key
"""
OF_COMMANDS = frozenset(
    f"FED_SOPHIA_{name}"
    for name in (
        *("CA", "CLIENT_CERT", "CLIENT_KEY", "DATA_DIR", "EVALUATOR_TOKEN", "JOIN_TOKEN"),
        *("OPERATOR_KEY", "OPERATOR_KEY_FILE", "SERVER"),
    )
)
"""Variables that other commands read, and the server does not."""
_WIDTH = len("data-directory")


def doctor(
    host: Annotated[str | None, typer.Option(help="As for `serve`.", show_default="FED_SOPHIA_HOST")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="As for `serve`.", show_default="FED_SOPHIA_SERVER_DATA_DIR")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="As for `serve`.", show_default="FED_SOPHIA_TLS_CERT")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="As for `serve`.", show_default="FED_SOPHIA_TLS_KEY")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="As for `serve`.", show_default="FED_SOPHIA_TLS_CA")
    ] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="As for `serve`.", show_default="FED_SOPHIA_TLS_CLIENT_CA")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="As for `serve`.", show_default="FED_SOPHIA_INSECURE")
    ] = False,
    json_lines: JsonLines = False,
) -> int:
    """Check what a server with these settings would need, and say what to do.

    Settings come from the environment, as a server's do. Nothing is changed but for probes, which are
    removed; a server may be running meanwhile. Exit code 1 if there is an error.
    """
    with needing("server"):
        from ps_service.doctor import CHECKS
        from ps_service.doctor.examination import examine
        from ps_service.doctor.finding import Level, error, ok
        from ps_service.doctor.variables import check_variables
        from ps_service.settings import Settings

    logging.getLogger("fed_sophia").addHandler(logging.NullHandler())  # what it would say is a finding
    given = {
        "host": host,
        "server_data_dir": data_dir,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_ca": tls_ca,
        "tls_client_ca": tls_client_ca,
        "insecure": insecure or None,
    }
    output = output_for(json_lines)
    counts = dict.fromkeys(Level, 0)

    def tell(name: str, finding: "Finding") -> None:
        counts[finding.level] += 1
        _tell(output, name, finding)

    tell("variables", check_variables(os.environ, OF_COMMANDS))
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]  # it looks at each
    except ValidationError as met:
        tell("settings", error("; ".join(problems(met)), "the list of settings says what each may be"))
    else:
        tell("settings", ok("every setting is one"))
        for name, finding in examine({name: partial(check, settings) for name, check in CHECKS.items()}):
            tell(name, finding)
    errors, warnings = counts[Level.ERROR], counts[Level.WARNING]
    output.summary(
        f"\n{errors} errors, {warnings} warnings",
        {"ok": counts[Level.OK], "warnings": warnings, "errors": errors},
    )
    return 1 if errors else 0


def _tell(output: Output, name: str, finding: "Finding") -> None:
    text = f"{finding.level:<7}  {name:<{_WIDTH}}  {one_line(finding.said)}"
    if finding.remedy:
        text += f"\n{'':<7}  {'':<{_WIDTH}}  -> {one_line(finding.remedy)}"
    output.event(
        "check",
        text,
        {
            "check": name,
            "level": finding.level,
            "said": finding.said,
            "remedy": finding.remedy,
            "measured": dict(finding.measured),
        },
    )
