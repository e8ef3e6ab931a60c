# SPDX-License-Identifier: Apache-2.0
"""The options of every command that talks to a server: whom to believe, and what to show."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.options import Trust

NO_CHOICE = Trust()


def with_trust(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose argument `trust` is read from these options."""

    @functools.wraps(command)
    def trusting(
        *, ca: Path | None, client_cert: Path | None, client_key: Path | None, insecure: bool, **chosen: Any
    ) -> None:
        command(**chosen, trust=Trust(ca, client_cert, client_key, insecure))

    own = inspect.signature(command).parameters
    shown: list[inspect.Parameter] = []
    for name, parameter in own.items():
        shown += inspect.signature(_options).parameters.values() if name == "trust" else [parameter]
    trusting.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return trusting


def _options(
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca",
            envvar="FED_SOPHIA_CA",
            help="Believe servers with a certificate of this CA (PEM) alone.",
            show_default="a worker's pinned one, or those of the system",
        ),
    ] = None,
    client_cert: Annotated[
        Path | None,
        typer.Option(
            "--client-cert",
            envvar="FED_SOPHIA_CLIENT_CERT",
            help="Certificate (PEM) to show a server that asks for one.",
        ),
    ] = None,
    client_key: Annotated[
        Path | None,
        typer.Option(
            "--client-key",
            envvar="FED_SOPHIA_CLIENT_KEY",
            help="Its private key (PEM), if it is not in the same file.",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            envvar="FED_SOPHIA_INSECURE",
            help="Allow plain HTTP with another machine; where the network itself is trusted.",
        ),
    ] = False,
) -> None:
    """Never called: the options as a signature, in the order in which `--help` shows them."""
