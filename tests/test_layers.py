# SPDX-License-Identifier: Apache-2.0
"""The architecture as a test: imports run downwards only, and each room keeps to its trade."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("protocol", "ps_service", "worker", "fed_sophia")
ALL_FOLDERS = (*ROOMS, "tests", "benchmarks", "deploy", "docs")

# What may not be imported, by room. The front door may import every room.
FORBIDDEN = {
    "protocol": {
        "ps_service",
        "worker",
        "fed_sophia",
        "torch",
        "fastapi",
        "starlette",
        "httpx",
        "sqlalchemy",
    },
    "ps_service": {"worker", "fed_sophia", "torch", "httpx", "sklearn"},
    "worker": {"ps_service", "fed_sophia", "fastapi", "starlette", "sqlalchemy"},
    "fed_sophia": {"torch"},
}
# What protocol is made of: no network, no files, no clock, no chance.
PROTOCOL_MAY_IMPORT = {
    "abc", "base64", "collections", "dataclasses", "enum", "functools", "hashlib", "ipaddress", "itertools",
    "math", "re", "struct", "typing", "urllib", "cryptography", "joserfc", "ml_dtypes", "msgpack", "numpy",
    "protocol", "pydantic",
}  # fmt: skip
MAX_LINES = 500
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
SPDX = "# SPDX-License-Identifier: Apache-2.0"


@cache
def files(folder: str) -> tuple[Path, ...]:
    found = sorted((ROOT / folder).rglob("*.py"))
    return tuple(path for path in found if not {"__pycache__", ".venv"} & set(path.parts))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(node: ast.AST) -> Iterator[str]:
    """The dotted names an import statement may load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        assert node.module is not None
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_imported(path: Path) -> set[str]:
    """Top-level packages named anywhere in a file, inside functions too."""
    return {name.split(".")[0] for node in ast.walk(tree(path)) for name in imported(node)}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_downwards_only(room: str) -> None:
    wrong = {shown(path): packages_imported(path) & FORBIDDEN[room] for path in files(room)}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_protocol_is_made_of_little() -> None:
    extra = {shown(path): packages_imported(path) - PROTOCOL_MAY_IMPORT for path in files("protocol")}
    assert {path: names for path, names in extra.items() if names} == {}


def test_protocol_opens_and_prints_nothing() -> None:
    calls = [
        f"{shown(path)}:{node.lineno} {node.func.id}"
        for path in files("protocol")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"open", "print", "input", "exec", "eval", "__import__"}
    ]
    assert calls == []


def test_only_the_clients_of_the_worker_know_httpx() -> None:
    users = {shown(path) for path in files("worker") if "httpx" in packages_imported(path)}
    assert users <= {"worker/client.py", "worker/sending.py", "worker/store_client.py"}


def reads_the_environment(path: Path) -> bool:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "getenvb"}:
            return True
        if any(name in {"os.environ", "os.getenv", "pydantic_settings"} for name in imported(node)):
            return True
    return False


def test_only_the_settings_of_the_server_read_the_environment() -> None:
    readers = {shown(path) for path in files("ps_service") if reads_the_environment(path)}
    assert readers <= {"ps_service/settings.py"}
    assert not [shown(path) for path in files("protocol") if reads_the_environment(path)]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_at_load(body: list[ast.stmt]) -> Iterator[str]:
    """What a module imports when it is loaded: not in functions, not for type checkers alone."""
    for statement in body:
        yield from imported(statement)
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            continue
        for part in ("body", "orelse", "finalbody"):
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = getattr(statement, part, [])
                yield from imports_at_load([each for each in inner if isinstance(each, ast.stmt)])


def test_no_modules_import_each_other_in_a_ring() -> None:
    modules = {module_name(path): path for room in ROOMS for path in files(room)}
    needs: dict[str, set[str]] = {}
    for module, path in modules.items():
        loaded = set(imports_at_load(tree(path).body)) & set(modules)
        # `from a.b import c` loads a.b.c when that is a module: a.b itself is then only on the way
        on_the_way = {name for name in loaded if any(other.startswith(f"{name}.") for other in loaded)}
        needs[module] = loaded - on_the_way - {module}
    settled: set[str] = set()
    while ready := {module for module in needs if module not in settled and needs[module] <= settled}:
        settled |= ready
    assert {module: sorted(needs[module] - settled) for module in needs if module not in settled} == {}


def loaded_by(module: str) -> set[str]:
    """Top-level packages loaded by importing one module in a fresh interpreter."""
    shown_modules = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*(name.split('.')[0] for name in sys.modules))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(shown_modules.stdout.split())


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("protocol.messages", {"torch", "fastapi", "httpx", "sqlalchemy", "asyncio"}),
        ("ps_service.app", {"torch", "worker", "sklearn", "httpx"}),
        ("ps_service.server", {"torch", "worker", "sklearn", "httpx", "obstore"}),
        ("ps_service.doctor", {"torch", "worker", "obstore", "asyncpg", "alembic"}),
        ("worker", {"torch", "sklearn"}),
        ("worker.client", {"torch", "sklearn", "fastapi"}),
        ("worker.agent", {"torch", "sklearn", "fastapi"}),
        ("fed_sophia", {"torch", "sklearn"}),
        ("fed_sophia.cli", {"torch", "sklearn", "matplotlib"}),
    ],
)
def test_a_room_is_entered_without_loading_what_it_does_not_need(module: str, heavy: set[str]) -> None:
    place = ROOT.joinpath(*module.split("."))
    if not (place.with_suffix(".py").exists() or (place / "__init__.py").exists()):
        pytest.skip(f"{module} does not exist")
    assert loaded_by(module) & heavy == set()


@pytest.mark.parametrize("folder", ALL_FOLDERS)
def test_every_file_states_its_licence_first(folder: str) -> None:
    assert [
        shown(path) for path in files(folder) if not path.read_text("utf-8").startswith(f"{SPDX}\n")
    ] == []


@pytest.mark.parametrize("folder", ALL_FOLDERS)
def test_no_file_is_too_long_to_read(folder: str) -> None:
    lengths = {shown(path): len(path.read_text("utf-8").splitlines()) for path in files(folder)}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("folder", ALL_FOLDERS)
def test_a_name_says_what_a_file_is_for(folder: str) -> None:
    assert [shown(path) for path in files(folder) if path.stem in NAMES_THAT_SAY_NOTHING] == []
    folders = [path for path in (ROOT / folder).rglob("*") if path.is_dir()]
    assert [shown(path) for path in folders if path.name in NAMES_THAT_SAY_NOTHING] == []


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_loads_code_or_pickles_from_bytes(room: str) -> None:
    wrong = {
        shown(path): packages_imported(path)
        & {"pickle", "cloudpickle", "dill", "marshal", "joblib", "shelve"}
        for path in files(room)
    }
    assert {path: names for path, names in wrong.items() if names} == {}
