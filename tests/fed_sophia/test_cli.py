# SPDX-License-Identifier: Apache-2.0
"""The command line: it explains itself, fails in one line, and speaks JSON when asked."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from fed_sophia.cli import app
from fed_sophia.commands.menu import COMMANDS as MENU
from fed_sophia.commands.menu import LazyGroup
from tests.fed_sophia.conftest import Ended

COMMANDS = [
    "demo",
    "serve",
    "doctor",
    "database status",
    "database migrate",
    "worker",
    "swarm",
    "workers list",
    "workers approve",
    "workers release",
    "workers revoke",
    "token list",
    "token revoke",
    "key create",
    "key list",
    "key revoke",
    "token create",
    "run create",
    "run list",
    "run show",
    "run workers",
    "run pause",
    "run resume",
    "run cancel",
    "run export",
    "run import",
    "experiment run",
    "experiment report",
    "experiment list",
]
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


Run = Callable[..., Ended]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command: str, fed_sophia: Run) -> None:
    done = fed_sophia(*command.split(), "--help")
    assert done.code == 0
    assert f"fed-sophia {command}" in done.stdout.partition("Examples:")[2]
    assert "--json" in done.stdout


def test_the_version_is_printed(fed_sophia: Run) -> None:
    assert fed_sophia("--version").stdout.startswith("fed-sophia 0.")


@pytest.mark.parametrize(
    "group", [[], ["run"], ["token"], ["workers"], ["key"], ["experiment"], ["database"]]
)
def test_without_a_command_the_commands_are_listed(group: list[str], fed_sophia: Run) -> None:
    done = fed_sophia(*group)
    assert done.code == 0
    assert "Commands" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["nonsense"], "invalid-usage", 2),
        (["demo", "--rounds", "none"], "invalid-usage", 2),
        (["demo", "--compare", "--set", "clip_bound=1"], "invalid-usage", 2),
        (["demo", "--algorithm", "fedmagic"], "unknown-algorithm", 1),
        (["run", "show"], "invalid-usage", 2),
        (["run", "list", "--server", NOBODY], "invalid-usage", 2),
        (["token", "create", "--expires", "soon"], "invalid-usage", 2),
        (["token", "create", "--uses", "0"], "invalid-message", 1),
        (["worker", "--task", "digits", "--join-token-file", "absent"], "invalid-usage", 2),
        (["worker", "--task", "digits", "--join-token", "nöpe"], "invalid-usage", 2),
        (["worker", "--task", "digits", "--server", "http://[::1"], "invalid-usage", 2),
        (["swarm", "--workers", "1", "--task", "digits", "--evaluator-token", "a b"], "invalid-usage", 2),
        (["run", "list", "--server", "http://[::1"], "invalid-usage", 2),
        (["run", "show", "../x"], "invalid-usage", 2),
        (["run", "export", "r", "-o", "."], "invalid-usage", 2),
        (["run", "export", "r", "-o", ""], "invalid-usage", 2),
        (["run", "create", "--task", "digits", "--cohort-size", "0"], "invalid-usage", 2),
        (["run", "create", "--task", "digits", "--set", "foo=1"], "invalid-usage", 2),
        (["experiment", "run", "nonsense"], "invalid-usage", 2),
        (["experiment", "run", "absent.toml"], "invalid-usage", 2),
        (["experiment", "run", "digits", "--seeds", "one"], "invalid-usage", 2),
        (["experiment", "run", "digits", "--seeds", "7"], "invalid-usage", 2),
        (["experiment", "run", "digits", "--only", "fedmagic"], "invalid-usage", 2),
        (["experiment", "run", "digits", "--points", "chosen"], "invalid-usage", 2),
        (["experiment", "report", "digits", "--only", "fedmagic"], "invalid-usage", 2),
        (["demo", "--task", "digits", "--partition", "nope"], "invalid-usage", 2),
        (["demo", "--task", "digits", "--batch-size", "1"], "invalid-message", 1),
        (["demo", "--task", "digits", "--set", "clip_bound=-1"], "invalid-message", 1),
    ],
)
def test_an_error_is_one_line_that_ends_with_its_code(
    arguments: list[str], code: str, exit_code: int, fed_sophia: Run
) -> None:
    done = fed_sophia(*arguments)
    assert done.code == exit_code
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"({code})\n")
    assert done.stderr.count("\n") == 1
    assert "Value error" not in done.stderr


def test_a_setting_that_is_no_number_is_named(fed_sophia: Run) -> None:
    done = fed_sophia("serve", FED_SOPHIA_MAX_BODY_BYTES="plenty")
    assert done.code == 2
    assert done.stderr.startswith("error: FED_SOPHIA_MAX_BODY_BYTES: ")
    assert done.stderr.count("\n") == 1


def test_a_directory_that_cannot_be_made_is_named(fed_sophia: Run) -> None:
    done = fed_sophia("serve", "--data-dir", "/proc/nowhere")
    assert done.code == 1
    assert done.stderr.startswith("error: data directory /proc/nowhere: ")
    assert done.stderr.count("\n") == 1


def test_a_server_that_is_not_there_is_named(fed_sophia: Run) -> None:
    done = fed_sophia("run", "list", "--server", NOBODY, FED_SOPHIA_OPERATOR_KEY="k")
    assert done.code == 1
    assert NOBODY in done.stderr
    assert done.stderr.endswith("(server-unreachable)\n")


def test_with_json_an_error_is_the_summary(fed_sophia: Run) -> None:
    done = fed_sophia("run", "list", "--json", "--server", NOBODY, FED_SOPHIA_OPERATOR_KEY="k")
    summary = json.loads(done.stdout)
    assert done.stderr == ""
    assert summary["summary"] is True
    assert summary["error"] == "server-unreachable"
    assert summary["retryable"] is True


def test_the_operator_key_never_appears_in_an_error(fed_sophia: Run) -> None:
    Path("key").write_text("very-secret-key\n")
    done = fed_sophia("run", "list", "--server", NOBODY, "--operator-key-file", "key")
    assert done.stderr
    assert "very-secret-key" not in done.stdout + done.stderr


def test_a_token_that_cannot_be_sent_is_named_by_its_option_and_not_repeated(fed_sophia: Run) -> None:
    done = fed_sophia("worker", "--task", "digits", FED_SOPHIA_JOIN_TOKEN="nöpe")
    assert done.code == 2
    assert "FED_SOPHIA_JOIN_TOKEN" in done.stderr
    assert "nöpe" not in done.stderr


OUR_SCRIPT = [sys.executable, "-P", "-m", "fed_sophia"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_a_reader_that_has_gone_is_no_error(arguments: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [*OUR_SCRIPT, *arguments],
            stdout=write_end,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("json_lines", [[], ["--json"]])
def test_an_error_that_standard_output_does_not_take_is_said_on_standard_error(
    json_lines: list[str], require_part: Callable[[bool, str], None]
) -> None:
    require_part(Path("/dev/full").exists(), "/dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*OUR_SCRIPT, "run", "list", "--server", NOBODY, *json_lines],
            env=os.environ | {"FED_SOPHIA_OPERATOR_KEY": "k"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("(server-unreachable)\n")


@pytest.mark.parametrize("name", MENU)
def test_the_list_of_commands_says_of_each_what_it_says_of_itself(name: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, LazyGroup)
    said = group.commands[name].help
    group.load(name)
    assert said == " ".join((group.commands[name].help or "").split("\n\n")[0].split())


def test_the_list_of_commands_loads_none_of_them() -> None:
    script = (
        "import sys; from fed_sophia.cli import run_command; run_command(['--help']); "
        "print(*(set(sys.modules) & {'numpy', 'httpx', 'pydantic', 'cryptography'}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize("module", ["fed_sophia", "fed_sophia.cli"])
def test_importing_the_front_door_loads_neither_torch_nor_the_server(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'fastapi', 'sqlalchemy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_what_users_import_is_the_worker_s_own() -> None:
    import fed_sophia
    from worker.tasks.base import Examples, Task

    assert fed_sophia.Task is Task
    assert fed_sophia.Examples is Examples


@pytest.mark.parametrize("way", ["script", "module"])
def test_a_folder_with_somebody_s_own_worker_and_protocol_does_not_break_us(way: str, tmp_path: Path) -> None:
    for name in ("worker", "protocol", "ps_service", "fed_sophia"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not fed-sophia')\n")
    script = [str(Path(sys.executable).with_name("fed-sophia"))]
    command = script if way == "script" else [sys.executable, "-P", "-m", "fed_sophia"]
    demo = ["demo", "--task", "digits", "--workers", "2", "--rounds", "1", "--partition", "iid", "--json"]
    done = subprocess.run(
        [*command, *demo], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"
