# SPDX-License-Identifier: Apache-2.0
"""`fed-sophia database …`: says what schema there is, and brings it to this version's when asked."""

import asyncio
import json
import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ps_service.storage.migrations import HEAD, OLDEST
from ps_service.storage.records import open_records
from tests.fed_sophia.conftest import Ended
from tests.postgres import Postgres

OF_0005 = Path(__file__).parents[1] / "golden" / "postgres-schema-0005.sql"
Run = Callable[..., Ended]


@pytest.fixture
def old_database(postgres: Postgres) -> Iterator[str]:
    """A PostgreSQL of schema 0005."""
    name = f"test-{secrets.token_hex(6)}"
    yield postgres.load(name, OF_0005)
    postgres.drop(name)


def a_file(directory: Path, *statements: str) -> Path:
    """The data directory of a server, on whose database this was done afterwards."""
    directory.mkdir()

    async def make() -> None:
        await (await open_records(directory / "records.sqlite")).close()

    asyncio.run(make())
    with closing(sqlite3.connect(directory / "records.sqlite")) as file:
        for statement in statements:
            file.execute(statement)
        file.commit()
    return directory


def test_a_postgresql_is_asked_migrated_and_asked_again(old_database: str, fed_sophia: Run) -> None:
    where = {"FED_SOPHIA_DATABASE_URL": old_database}
    before = fed_sophia("database", "status", **where)
    assert before.code == 1
    assert f"is 0005, this version of fed-sophia wants {HEAD}: `fed-sophia database migrate`" in before.stdout
    assert fed_sophia("database", "migrate").stdout == (
        f"migrated: the database's schema was 0005 and is {HEAD}; "
        f"servers whose schema is older than {OLDEST} must not go on\n"
    )
    again = fed_sophia("database", "migrate", "--json")
    assert json.loads(again.stdout) == {
        "summary": True,
        "migrated": False,
        "before": HEAD,
        "schema": HEAD,
        "oldest": OLDEST,
    }
    after = fed_sophia("database", "status", "--json")
    assert (after.code, json.loads(after.stdout)) == (
        0,
        {
            "summary": True,
            "schema": HEAD,
            "wanted": HEAD,
            "oldest": OLDEST,
            "newer": False,
            "server_starts": True,
        },
    )


def test_a_server_ends_at_once_and_names_the_command(old_database: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fed_sophia", "serve", "--port", "0"],
        env=os.environ | {"FED_SOPHIA_DATABASE_URL": old_database},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "`fed-sophia database migrate`" in done.stderr.splitlines()[-1]


def test_an_empty_postgresql_is_made(new_database: Callable[[], str], fed_sophia: Run) -> None:
    where = {"FED_SOPHIA_DATABASE_URL": new_database()}
    assert "the database is empty" in fed_sophia("database", "status", **where).stdout
    assert f"its schema is {HEAD}" in fed_sophia("database", "migrate").stdout
    assert f"the database's schema is {HEAD}, as" in fed_sophia("database", "status").stdout


def test_a_file_that_nobody_has_made_is_not_made_by_a_mistyped_path(tmp_path: Path, fed_sophia: Run) -> None:
    for command in ("status", "migrate"):
        done = fed_sophia("database", command, "--data-dir", "nowhere")
        assert done.code == 2
        assert "there is no database nowhere/records.sqlite" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_an_older_schema_is_migrated(tmp_path: Path, fed_sophia: Run) -> None:
    older = (
        "DROP TABLE schema_compatibility",
        "DROP TABLE condemned",
        "ALTER TABLE updates DROP COLUMN admitted",
        "ALTER TABLE workers DROP COLUMN device",
        "UPDATE alembic_version SET version_num = '0005'",
    )
    where = ("--data-dir", str(a_file(tmp_path / "data", *older)))
    asked = fed_sophia("database", "status", *where)
    assert (asked.code, "the next start of the server brings it there" in asked.stdout) == (0, True)
    assert "was 0005 and is" in fed_sophia("database", "migrate", *where).stdout
    assert "nothing to do" in fed_sophia("database", "migrate", *where).stdout


@pytest.mark.parametrize(("oldest", "starts"), [(HEAD, True), ("9999", False)])
def test_a_newer_schema_is_told_and_left_alone(
    oldest: str, starts: bool, tmp_path: Path, fed_sophia: Run
) -> None:
    newer = (
        "UPDATE alembic_version SET version_num = '9999'",
        f"UPDATE schema_compatibility SET oldest = '{oldest}'",
    )
    where = ("--data-dir", str(a_file(tmp_path / "data", *newer)))
    asked = fed_sophia("database", "status", *where, "--json")
    told = json.loads(asked.stdout)
    assert (asked.code == 0, told["server_starts"], told["newer"]) == (starts, starts, True)
    refused = fed_sophia("database", "migrate", *where)
    assert (refused.code, "(unsupported-version)" in refused.stderr) == (1, True)


def test_a_database_that_cannot_be_reached_is_told_without_its_password(fed_sophia: Run) -> None:
    done = fed_sophia(
        "database", "status", FED_SOPHIA_DATABASE_URL="postgresql://me:hidden-word@127.0.0.1:9/x"
    )
    assert (done.code, "(not-ready)" in done.stderr) == (1, True)
    assert "hidden-word" not in done.stdout + done.stderr
    done = fed_sophia("database", "status", FED_SOPHIA_DATABASE_URL="postgresql://me@host:hidden-word/x")
    assert (done.code, "hidden-word" in done.stdout + done.stderr) == (2, False)
