# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how their values are read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import InvalidUsage

DEFAULT_SERVER = "http://127.0.0.1:8080"

JsonLines = Annotated[
    bool, typer.Option("--json", help="Print JSON lines for machines; the last one is a summary.")
]
Server = Annotated[
    str, typer.Option("--server", envvar="FED_SOPHIA_SERVER", help="Address of the parameter server.")
]
OperatorKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--operator-key-file",
        envvar="FED_SOPHIA_OPERATOR_KEY_FILE",
        help="File with the operator key. FED_SOPHIA_OPERATOR_KEY may hold the key itself; for a server on "
        "this machine ./fed-sophia-data/operator.key is used when it is there.",
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `run list` shows it.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="FED_SOPHIA_DATA_DIR", help="Where to look for data sets first."),
]
JoinToken = Annotated[
    str | None,
    typer.Option(
        "--join-token",
        envvar="FED_SOPHIA_JOIN_TOKEN",
        help="Join token. Other users can read a command line: prefer the variable or the file.",
    ),
]
JoinTokenFile = Annotated[Path | None, typer.Option("--join-token-file", help="File with the join token.")]
ExitWithParent = Annotated[
    bool,
    typer.Option("--exit-with-parent", hidden=True, help="Stop when standard input reaches its end."),
]

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def duration_s(text: str, option: str) -> float:
    """Read `90s`, `10m`, `24h`, `7d` or plain seconds.

    Raises:
        InvalidUsage: it is none of these, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    seconds = float(match[1]) * _UNITS_S[match[2] or "s"] if match else 0.0
    if not seconds:
        raise InvalidUsage(f"{option} {text!r}: expected a duration like 90s, 10m, 24h or 7d")
    return seconds


def named_values(pairs: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read repeated `NAME=VALUE`.

    Raises:
        InvalidUsage: one of them has no name, no value or no `=`.
    """
    values = {}
    for pair in pairs or ():
        name, _, value = pair.partition("=")
        if not name or not value:
            raise InvalidUsage(f"{option} {pair!r}: expected NAME=VALUE")
        values[name] = value
    return values


def hyperparameters(pairs: Sequence[str] | None) -> dict[str, float | int | None]:
    """Read repeated `--set NAME=VALUE`; `none` chooses the algorithm's own value.

    Raises:
        InvalidUsage: a value is not a number.
    """
    return {name: _number(name, text) for name, text in named_values(pairs, "--set").items()}


def _number(name: str, text: str) -> float | int | None:
    if text.lower() == "none":
        return None
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    raise InvalidUsage(f"--set {name}={text}: expected a number")


def read_secret(file: Path, what: str) -> str:
    """The one line of a secret's file.

    Raises:
        InvalidUsage: the file cannot be read or is empty.
    """
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidUsage(f"the {what} cannot be read from {file}: {type(error).__name__}") from None
    if not text:
        raise InvalidUsage(f"{file} is empty; expected a {what}")
    return text


def operator_key(server_url: str, key_file: Path | None, environment: Mapping[str, str]) -> str:
    """Find the operator key, or say where it was looked for.

    Raises:
        InvalidUsage: it is nowhere.
    """
    if key_file is not None:
        return read_secret(key_file, "operator key")
    if key := environment.get("FED_SOPHIA_OPERATOR_KEY", "").strip():
        return key
    beside = Path("fed-sophia-data/operator.key")
    if is_loopback(server_url) and beside.is_file():
        return read_secret(beside, "operator key")
    raise InvalidUsage(
        f"no operator key for {server_url}: give --operator-key-file; "
        "`fed-sophia serve` says where its key is"
    )


def is_loopback(server_url: str) -> bool:
    """Whether the server is on this machine."""
    return re.match(r"https?://(127\.\d+\.\d+\.\d+|localhost|\[::1\])([:/]|$)", server_url) is not None
