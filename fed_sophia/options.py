# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how their values are read."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import TypeAdapter, ValidationError

from protocol import addresses
from protocol.algorithms import ALGORITHMS, JOINED, LOCALS, SERVERS, algorithm_named
from protocol.errors import InvalidUsage
from protocol.fields import Identifier


def server_address(url: str) -> str:
    """`url`, if it is the address of a server.

    Raises:
        InvalidUsage: it is not.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or re.search(r"\s", url):
        raise InvalidUsage(f"server {url!r}: expected an address like http://127.0.0.1:8080")
    return url


def run_id(text: str) -> str:
    """`text`, if it may be the id of a run.

    Raises:
        InvalidUsage: it may not.
    """
    try:
        return TypeAdapter(Identifier).validate_python(text)
    except ValidationError:
        raise InvalidUsage(f"run {text!r}: expected a run's id, as `fed-sophia run list` shows it") from None


def secret(text: str, found_in: str, what: str) -> str:
    """`text` without white space around it, if it can travel in an HTTP header.

    Raises:
        InvalidUsage: it cannot; the sentence says where it was found, and nothing of the secret.
    """
    text = text.strip()
    if not text:
        raise InvalidUsage(f"{found_in} is empty; expected a {what}")
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise InvalidUsage(
            f"{found_in} holds no {what}: expected one line of visible ASCII characters, without blanks"
        )
    return text


def _token(parameter: typer.CallbackParam, value: str | None) -> str | None:
    if value is None:
        return None
    return secret(value, f"{parameter.opts[0]} (or {parameter.envvar})", "join token")


DEFAULT_SERVER = "http://127.0.0.1:8080"

JsonLines = Annotated[
    bool, typer.Option("--json", help="Print JSON lines for machines; the last one is a summary.")
]
Server = Annotated[
    str,
    typer.Option(
        "--server",
        envvar="FED_SOPHIA_SERVER",
        help="Address of the parameter server.",
        callback=server_address,
    ),
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
RunId = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The run's id, as `run list` shows it.", callback=run_id),
]


def algorithm_names(incomplete: str) -> list[str]:
    """What `--algorithm` may go on as, for the shell: two that are joined once there is a plus sign."""
    names = JOINED if "+" in incomplete else ALGORITHMS
    return [name for name in names if name.startswith(incomplete)]


AlgorithmName = Annotated[
    str,
    typer.Option(
        "--algorithm",
        help=f"One of {', '.join(ALGORITHMS)}; or two, as in fedprox+fedadam: one of {', '.join(LOCALS)} "
        f"on the workers, one of {', '.join(SERVERS)} on the server.",
        autocompletion=algorithm_names,
    ),
]
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
        callback=_token,
    ),
]
EvaluatorToken = Annotated[
    str | None,
    typer.Option(
        "--evaluator-token",
        envvar="FED_SOPHIA_EVALUATOR_TOKEN",
        help="Join token with the role evaluator: adds one evaluator to this process.",
        callback=_token,
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


def hyperparameters(pairs: Sequence[str] | None, algorithm: str) -> dict[str, float | int | str | None]:
    """Read repeated `--set NAME=VALUE`; `none` chooses the algorithm's own value.

    Raises:
        InvalidUsage: a value is no finite number though one is expected, or the algorithm has no such
            hyper-parameter.
        UnknownAlgorithm: there is no such algorithm.
    """
    known = algorithm_named(algorithm).hyperparameters.model_fields
    values = named_values(pairs, "--set")
    for name in values:
        if name not in known:
            raise InvalidUsage(f"--set {name}: {algorithm} has {', '.join(known)}")
    words = {name for name, field in known.items() if isinstance(field.default, str)}
    return {name: text if name in words else _number(name, text) for name, text in values.items()}


def _number(name: str, text: str) -> float | int | None:
    if text.lower() == "none":
        return None
    for read in (int, float):
        try:
            number = read(text)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    raise InvalidUsage(f"--set {name}={text}: expected a finite number")


def read_secret(file: Path, what: str) -> str:
    """The one line of a secret's file.

    Raises:
        InvalidUsage: the file cannot be read, or holds something else.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidUsage(f"the {what} cannot be read from {file}: {type(error).__name__}") from None
    return secret(text, str(file), what)


def operator_key(server_url: str, key_file: Path | None, environment: Mapping[str, str]) -> str:
    """Find the operator key, or say where it was looked for.

    Raises:
        InvalidUsage: it is nowhere.
    """
    if key_file is not None:
        return read_secret(key_file, "operator key")
    if key := environment.get("FED_SOPHIA_OPERATOR_KEY", "").strip():
        return secret(key, "FED_SOPHIA_OPERATOR_KEY", "operator key")
    beside = Path("fed-sophia-data/operator.key")
    if is_loopback(server_url) and beside.is_file():
        return read_secret(beside, "operator key")
    raise InvalidUsage(
        f"no operator key for {server_url}: give --operator-key-file; "
        "`fed-sophia serve` says where its key is"
    )


def is_loopback(server_url: str) -> bool:
    """Whether the server is on this machine."""
    return addresses.is_loopback(urlsplit(server_url).hostname or "")
