# SPDX-License-Identifier: Apache-2.0
"""What can be set, asked, measured or refused is documented; an undocumented one fails here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import torch
import typer

from fed_sophia.cli import app as command_line
from fed_sophia.commands.menu import COMMANDS as MENU
from fed_sophia.commands.menu import LazyGroup
from fed_sophia.experiments.attacks import ATTACKS
from protocol.algorithms import ALGORITHMS, JOINED, LOCALS, SERVERS, algorithm_named
from protocol.errors import InvalidUsage, every_error
from protocol.estimates import HESSIAN_ESTIMATORS
from protocol.messages import RunSpec
from ps_service.app import create_app
from ps_service.clock import SystemClock
from ps_service.combiners import COMBINERS
from ps_service.metrics import Meters
from ps_service.routes.problems import STATUS
from ps_service.settings import Settings
from ps_service.storage import Stores
from ps_service.storage.files import FileBlobs
from ps_service.storage.records import open_records
from ps_service.summaries import ADDED_UP
from worker.energy import Counter
from worker.meter import MeasuredRound, Stopwatch
from worker.tasks import TASKS, load_task
from worker.tasks.partition import parse_partition

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"


def sections(document: str) -> dict[str, str]:
    """{second-level heading: its text} of a page of the reference; back quotes are left out of headings."""
    parts = re.split(r"^## (.+)$", (REFERENCE / document).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        heading.replace("`", "").strip(): text for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


class Parameter(Protocol):
    name: str | None
    opts: list[str]
    hidden: bool
    param_type_name: str
    metavar: str | None


class Command(Protocol):
    params: list[Parameter]


def loaded(group: object) -> Command:
    """The command line with every command loaded."""
    assert isinstance(group, LazyGroup)
    for name in MENU:
        group.load(name)
    return group


def commands(command: Command, path: tuple[str, ...] = ("fed-sophia",)) -> Iterator[tuple[str, Command]]:
    """(full name, command) of everything that can be run, groups left out."""
    children: dict[str, Command] = getattr(command, "commands", {})
    if not children:
        yield " ".join(path), command
    for name, child in children.items():
        yield from commands(child, (*path, name))


COMMANDS = dict(commands(loaded(typer.main.get_command(command_line))))


def test_every_error_code_is_explained_and_no_other() -> None:
    assert set(sections("errors.md")) == {error.code for error in every_error()}


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.code)
def test_an_error_s_page_says_whose_fault_it_is_and_whether_to_try_again(error: type) -> None:
    text = sections("errors.md")[error.code]
    assert f"Fault: {error.fault.value}. Retry: {'yes' if error.retryable else 'no'}." in text
    status = re.search(r"HTTP (\d+)", text)
    assert (int(status[1]) if status else None) == STATUS.get(error)


def test_every_command_has_its_heading_and_no_other() -> None:
    assert set(sections("cli.md")) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_has_its_row_and_no_other(name: str) -> None:
    shown = [each for each in COMMANDS[name].params if each.name != "help" and not each.hidden]
    expected = {
        option
        for each in shown
        for option in (each.opts if each.param_type_name == "option" else [each.metavar])
    }
    cells = re.findall(r"^\| (`[^|]+) \|", sections("cli.md")[name], flags=re.MULTILINE)
    # a row is "`--option`, `-o` `PLACEHOLDER`"; an argument's row is "`PLACEHOLDER`"
    documented = {
        word
        for cell in cells
        for word in re.findall(r"`([^`]+)`", cell)
        if word.startswith("-") or cell.strip() == f"`{word}`"
    }
    assert documented == expected


def test_every_setting_has_its_heading_and_no_other() -> None:
    variables = {f"FED_SOPHIA_{name.upper()}" for name in Settings.model_fields}
    assert set(sections("settings.md")) == variables


def test_every_field_of_a_run_spec_has_its_heading_and_no_other() -> None:
    chapters = {"What is trained", "Who takes part", "What is kept", "When a round ends", "When the run ends"}
    assert set(sections("run-spec.md")) == set(RunSpec.model_fields) | chapters


def rows(section: str) -> dict[str, str]:
    """{first cell: second cell} of the rows that begin with code."""
    return dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", section, flags=re.MULTILINE))


def test_every_algorithm_has_its_heading_and_no_other() -> None:
    assert set(sections("algorithms.md")) == set(ALGORITHMS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_hyperparameter_combiner_and_server_step_of_an_algorithm_is_told(name: str) -> None:
    algorithm, section = ALGORITHMS[name], sections("algorithms.md")[name]
    documented = rows(section)
    defaults = {field: documented.pop(field, "absent") for field in algorithm.hyperparameters.model_fields}
    expected = algorithm.hyperparameters()
    for field, text in defaults.items():
        value = getattr(expected, field)
        if value is None or isinstance(value, str):
            assert text == (value or "none"), field
        else:
            assert float(text) == pytest.approx(value, rel=1e-4), field
    assert documented == algorithm.combiners
    assert f"Server step `{algorithm.server_step}`" in section


def test_what_can_be_joined_is_told_and_nothing_else() -> None:
    text = (REFERENCE / "algorithms.md").read_text(encoding="utf-8")
    paragraph = text.partition("**Two algorithms in one**")[2].partition("\n\n")[0]
    quoted = re.findall(r"`([^`]+)`", paragraph.replace("`--algorithm LOCAL+SERVER`", ""))
    named = {name for name in quoted if "+" not in name and name != "server_"} - {"learning_rate"}
    numbers = {name for pair in JOINED for name in algorithm_named(pair).hyperparameters.model_fields}
    assert named == {*LOCALS, *SERVERS, *(name for name in numbers if name.startswith("server_"))}


def test_every_combiner_and_estimator_is_told_before_the_algorithms_and_no_other() -> None:
    before, _, _ = (REFERENCE / "algorithms.md").read_text(encoding="utf-8").partition("\n## ")
    told = set(re.findall(r"^\| `([^`]+)` \|", before, flags=re.MULTILINE))
    assert told == {*COMBINERS, *HESSIAN_ESTIMATORS}


def test_every_task_of_the_menu_has_its_heading_and_its_row_and_no_other() -> None:
    before, _, _ = (REFERENCE / "tasks.md").read_text(encoding="utf-8").partition("\n## ")
    assert (
        list(sections("tasks.md")) == re.findall(r"^\| `([^`]+)` \|", before, flags=re.MULTILINE) == [*TASKS]
    )


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_of_the_menu_is_told(name: str) -> None:
    page = (ROOT / "docs" / "howto" / "run-an-experiment.md").read_text(encoding="utf-8")
    assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", page, flags=re.MULTILINE)


@pytest.mark.parametrize("name", TASKS)
def test_the_number_of_parameters_of_a_task_is_told(name: str) -> None:
    page = (REFERENCE / "tasks.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{name}` \|.*\| ([\d,]+) \|$", page, flags=re.MULTILINE)
    with torch.device("meta"):  # parameters that take no memory
        model = load_task(name).model()
    assert row and int(row[1].replace(",", "")) == sum(p.numel() for p in model.parameters())


def test_every_partition_that_a_refusal_names_is_told() -> None:
    with pytest.raises(InvalidUsage) as refused:
        parse_partition("")
    named = re.findall(r"(?:iid|groups|[a-z]+:[A-Z]+)", refused.value.detail)
    before, _, _ = (REFERENCE / "cli.md").read_text(encoding="utf-8").partition("\n## ")
    assert re.findall(r"^\| `([^`]+)` \|", before, flags=re.MULTILINE) == named


def test_every_metric_has_its_heading_and_no_other() -> None:
    chapters = {"What workers report", "Of the parameter server"}
    assert set(sections("metrics.md")) == set(Meters().names()) | chapters


def test_every_metric_of_a_worker_s_machine_is_told() -> None:
    told = re.findall(r"^\| `([^`]+)` \|", sections("metrics.md")["What workers report"], flags=re.MULTILINE)
    moments, joules = iter(range(9)), iter(range(9))
    stopwatch = Stopwatch(lambda: next(moments), lambda first, second: float(second - first))
    measured = MeasuredRound(stopwatch, lambda: 1, (Counter(lambda: float(next(joules))),))
    for refreshed in (True, False):
        measured.step_done(refreshed)
    assert sorted({"train_loss", "train_seconds", "clip_fraction", *measured.metrics(1, 2)}) == sorted(told)
    assert set(told) >= ADDED_UP


async def test_every_endpoint_has_its_heading_and_no_other(tmp_path: Path) -> None:
    records = await open_records(None)
    try:
        app = create_app(Settings(), Stores(records, FileBlobs(tmp_path)), SystemClock())
        paths: dict[str, dict[str, object]] = app.openapi()["paths"]
    finally:
        await records.close()
    endpoints = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    documented = set(sections("http-api.md"))
    assert documented <= endpoints
    undocumented = endpoints - documented
    # whatever answers GET answers HEAD in the same words
    assert {
        endpoint for endpoint in undocumented if endpoint.replace("HEAD", "GET") not in documented
    } == set()


def test_the_example_in_the_guide_is_the_file_that_is_tested() -> None:
    guide = (ROOT / "docs" / "howto" / "bring-your-own-model.md").read_text(encoding="utf-8")
    example = (ROOT / "examples" / "my_task.py").read_text(encoding="utf-8")
    code = example.partition("\n")[2]  # without the licence line
    assert f"```python\n{code}```" in guide
    assert len(example.splitlines()) <= 30


PAGES = [page.relative_to(ROOT) for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", sorted(PAGES), ids=str)
def test_no_link_inside_the_project_is_broken(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert (ROOT / page.parent / target).exists(), target


def test_every_file_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w./-]+(?:\.py|\.md|/))`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
