# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia doctor`: a sentence a check, an exit code, an object a check in JSON, and no secret."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fed_sophia.cli import app
from fed_sophia.commands.doctor import OF_COMMANDS
from fed_sophia.commands.menu import COMMANDS as MENU
from fed_sophia.commands.menu import LazyGroup
from ps_service.doctor import CHECKS
from ps_service.settings import Settings
from tests.certificates import Authority
from tests.fed_sophia.conftest import Ended

PASSWORD = "hidden-word"
Run = Callable[..., Ended]


def checked(ended: Ended) -> dict[str, dict[str, Any]]:
    """{check: its object} of what was printed as JSON, the summary as `summary`."""
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[-1].pop("summary") is True
    assert {line["event"] for line in lines[:-1]} == {"check"}
    return {line["check"]: line for line in lines[:-1]} | {"summary": lines[-1]}


def test_where_nothing_is_wrong_it_is_told_of_each_check_and_nothing_is_made(
    tmp_path: Path, fed_sophia: Run
) -> None:
    done = fed_sophia("doctor", "--json", FED_SOPHIA_MAX_WAITING="100")
    found = checked(done)
    assert list(found) == ["variables", "settings", *CHECKS, "summary"]
    assert found["summary"] == {"ok": 9, "warnings": 0, "errors": 0}
    assert done.code == 0
    assert list(tmp_path.iterdir()) == []


def test_for_people_it_is_a_line_a_check_and_another_for_what_to_do(fed_sophia: Run) -> None:
    done = fed_sophia("doctor", FED_SOPHIA_MAX_WAITNG="100", FED_SOPHIA_MAX_WAITING="100")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["warning", "variables", "nothing", "reads", "FED_SOPHIA_MAX_WAITNG"]
    assert lines[1].endswith("-> FED_SOPHIA_MAX_WAITNG: did you mean FED_SOPHIA_MAX_WAITING?")
    assert (done.code, lines[-1]) == (0, "0 errors, 1 warnings")


def test_what_is_wrong_with_the_database_is_an_error_without_its_password(fed_sophia: Run) -> None:
    done = fed_sophia("doctor", "--json", FED_SOPHIA_DATABASE_URL=f"postgresql://me:{PASSWORD}@127.0.0.1:9/x")
    found = checked(done)
    assert (done.code, found["database"]["level"], found["clock"]["level"]) == (1, "error", "warning")
    assert "nobody listens there" in found["database"]["said"]
    assert PASSWORD not in done.stdout + done.stderr


def test_options_go_before_the_environment(tmp_path: Path, fed_sophia: Run) -> None:
    issued = Authority(tmp_path / "ca").issue(expired=True)
    given = ("--tls-cert", str(issued.chain), "--tls-key", str(issued.key))
    done = fed_sophia("doctor", "--json", *given, FED_SOPHIA_TLS_CERT="nowhere.pem")
    assert "has expired" in checked(done)["tls"]["said"]
    assert (done.code, done.stderr) == (1, "")


def test_a_setting_that_is_none_is_an_error_and_ends_the_examination(fed_sophia: Run) -> None:
    """As by Kubernetes, where a service is called fed-sophia."""
    done = fed_sophia(
        "doctor", "--json", FED_SOPHIA_PORT="tcp://10.0.0.1:80", FED_SOPHIA_SERVICE_HOST="10.0.0.1"
    )
    found = checked(done)
    assert list(found) == ["variables", "settings", "summary"]
    assert (done.code, found["settings"]["said"][:16]) == (1, "FED_SOPHIA_PORT:")
    assert "enableServiceLinks: false" in found["variables"]["remedy"]


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of somebody who accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_what_hangs_holds_up_neither_the_others_nor_the_end(tmp_path: Path, silent: str) -> None:
    pytest.importorskip("obstore")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FED_SOPHIA_")}
    environment |= {
        "FED_SOPHIA_BLOBS_URL": "s3://bucket/prefix",
        "FED_SOPHIA_DATABASE_URL": f"postgresql://me:{PASSWORD}@{silent}/x",
        "AWS_ENDPOINT": f"http://{silent}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": PASSWORD,
        "AWS_READ_TIMEOUT": "60s",
    }
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fed_sophia", "doctor", "--json"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = checked(Ended(done.returncode, done.stdout, done.stderr))
    assert time.monotonic() - began_s < 30
    assert found["blobs"]["said"] == "no answer within 10 s"
    assert "it does not answer" in found["database"]["said"]
    assert found["data-directory"]["level"] == "ok"
    assert PASSWORD not in done.stdout + done.stderr


def test_every_variable_that_a_command_reads_is_known() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup)
    for name in MENU:
        group.load(name)
    named, commands = set(), [group]
    while commands:
        command: Any = commands.pop()
        commands += getattr(command, "commands", {}).values()
        named |= {each.envvar for each in command.params if isinstance(each.envvar, str)}
    of_the_server = {f"FED_SOPHIA_{name.upper()}" for name in Settings.model_fields}
    assert named - of_the_server == OF_COMMANDS - {"FED_SOPHIA_OPERATOR_KEY"}  # which no option names
