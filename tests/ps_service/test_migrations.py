# SPDX-License-Identifier: Apache-2.0
"""A database that an earlier version made is opened, brought up to date, and loses nothing."""

import json
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from protocol.messages import Outcome, RoundStatus, RunSpec
from ps_service.storage import (
    assignment_records,
    credential_records,
    member_records,
    migrations,
    run_records,
    update_records,
    version_records,
)
from ps_service.storage.schema import metadata
from ps_service.storage.sqlite_records import SqliteRecords
from tests.ps_service.silence import LOST_AFTER_S, pass_time

PARAMS, AVERAGE, UPDATE = (digit * 64 for digit in "abc")
SPEC = (Path(__file__).parents[1] / "golden" / "run-spec.json").read_text(encoding="utf-8")
OPEN_RUN = {"status": "running", "round": 2, "round_open": True, "version": 1, "started_ms": 20}
ROUND = {"invited": 2, "target": 2, "quorum": 1, "partial": False, "extension_ms": 60, "extensions_left": 0}
COMMITTED = ROUND | {
    "number": 1,
    "base_version": 0,
    "opened_ms": 20,
    "deadline_ms": 80,
    "now_ms": 50,
    "status": "committed",
    "admitted": 1,
    "declined": 1,
    "ended_ms": 50,
    "reason": None,
}
COLLECTING = ROUND | {
    "number": 2,
    "base_version": 1,
    "opened_ms": 50,
    "deadline_ms": 10**9,
    "now_ms": 50,
    "status": "collecting",
    "admitted": 0,
    "declined": 0,
    "ended_ms": None,
    "reason": None,
}
HEADER = {
    "schema_version": 1,
    "digest": UPDATE,
    "size_bytes": 10,
    "bundles": ["delta"],
    "encodings": {"delta": "f32"},
    "num_examples": 10,
    "local_steps": 1,
    "metrics": {},
}
ROWS: list[tuple[str, tuple[object, ...]]] = [
    ("workers", ("w-1", "first", "hash-1", "trainer", '["digits"]', 1, 40, None)),
    ("workers", ("w-2", "second", "hash-2", "trainer", '["digits"]', 2, 41, None)),
    ("workers", ("w-3", "gone", "hash-3", "evaluator", '["digits"]', 3, 4, 30)),
    ("runs", ("run-1", "digits", "running", SPEC, json.dumps(OPEN_RUN), 10)),
    ("members", ("run-1", "w-1", 0)),
    ("members", ("run-1", "w-2", 1)),
    ("rounds", ("run-1", 1, "committed", 80, json.dumps(COMMITTED), 10, 20)),
    ("rounds", ("run-1", 2, "collecting", 10**9, json.dumps(COLLECTING), 0, 0)),
    ("versions", ("run-1", 0, None, json.dumps({"params": PARAMS}), 10)),
    ("versions", ("run-1", 1, 1, json.dumps({"params": AVERAGE}), 50)),
    ("state_tensors", ("run-1", PARAMS)),
    ("state_tensors", ("run-1", AVERAGE)),
    ("assignments", ("a-1", "run-1", 1, "w-1", 0, None, True)),
    ("assignments", ("a-2", "run-1", 1, "w-2", 1, "on battery", True)),
    ("assignments", ("a-3", "run-1", 2, "w-1", 0, None, False)),
    ("assignments", ("a-4", "run-1", 2, "w-2", 1, None, False)),
    ("updates", ("a-1", "run-1", 1, 0, UPDATE, json.dumps(HEADER), 45, "counted", 1, None)),
]


@pytest.fixture
def first_database(tmp_path):
    """The file of a server whose schema was 0001, in the middle of a run."""
    path = tmp_path / "records.sqlite"
    config = Config()
    config.set_main_option("script_location", migrations.__path__[0])
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for table, row in ROWS:
            marks = ", ".join("?" * len(row))
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", row)
    engine.dispose()
    return path


def differences_from_ours(connection):
    return compare_metadata(MigrationContext.configure(connection), metadata)


GIVEN_UP = {("workers", "secret_hash")}
"""A worker has a key now: it enrols again."""


def columns_of_the_first_schema(connection):
    """{table: the columns that schema 0001 had and that are kept}."""
    return {
        table: [
            each["name"]
            for each in inspect(connection).get_columns(table)
            if (table, each["name"]) not in GIVEN_UP
        ]
        for table in inspect(connection).get_table_names()
        if table != "alembic_version"
    }


async def test_a_database_of_the_first_schema_is_brought_up_to_date_with_its_rows(first_database):
    engine = create_engine(f"sqlite:///{first_database}")
    with engine.connect() as connection:
        columns = columns_of_the_first_schema(connection)
        before = {
            table: sorted(
                connection.exec_driver_sql(f"SELECT {', '.join(names)} FROM {table}").all(), key=str
            )
            for table, names in columns.items()
        }
    engine.dispose()

    for _ in range(2):  # and opened once more, as it is then
        records = await SqliteRecords.open(first_database)
        async with records.engine.connect() as connection:
            assert await connection.run_sync(differences_from_ours) == []
            version = await connection.execute(text("SELECT version_num FROM alembic_version"))
            assert version.scalar_one() == migrations.HEAD
            for table, rows in before.items():
                kept = await connection.exec_driver_sql(f"SELECT {', '.join(columns[table])} FROM {table}")
                assert sorted(kept.all(), key=str) == rows, table
        await records.close()


async def test_what_an_earlier_version_did_not_know_it_says_nothing_of(first_database):
    records = await SqliteRecords.open(first_database)
    async with records.read() as connection:
        worker = await credential_records.worker_by_id(connection, "w-1")
        assert (worker.last_seen_ms, worker.lost_ms, worker.revoked_ms) == (40, None, None)
        assert list(await member_records.eligible_slots(connection, "run-1")) == [0, 1]
        run = await run_records.load_run(connection, "run-1")
        assert run.spec == RunSpec.model_validate_json(SPEC)
        committed, collecting = await run_records.list_rounds(connection, "run-1", 0, 10)
        assert (committed.state.status, committed.state.declined, committed.state.lost) == (
            RoundStatus.COMMITTED,
            1,
            0,
        )
        assert (collecting.state.status, collecting.state.lost) == (RoundStatus.COLLECTING, 0)
        first, second = await update_records.invited_to(connection, "run-1", 1, -1, 10)
        assert (first.receipt.outcome, first.receipt.version) == (Outcome.COUNTED, 1)
        assert (second.assignment.declined_reason, second.assignment.refused_code) == ("on battery", None)
        [to_do] = await assignment_records.open_assignments_of(connection, "w-2")
        assert (to_do.assignment_id, to_do.lost_ms) == ("a-4", None)
        versions = await version_records.list_versions(connection, "run-1")
        assert [(version.version, version.collected) for version in versions] == [(0, False), (1, False)]
    await records.close()


async def test_a_round_of_an_earlier_version_goes_on(start_server, first_database):
    server = await start_server(on_disk=True, performing=False, directory=first_database.parent)
    worker = (await server.operator.get("/v1/workers")).json()["workers"][0]
    assert worker["lost_ms"] is None
    rounds = await server.rounds("run-1")
    assert [(each["status"], each["lost"]) for each in rounds] == [("committed", 0), ("collecting", 0)]
    answer = await server.operator.get("/v1/runs/run-1/rounds/1/workers")
    standings = [(row["name"], row["standing"], row["reason"]) for row in answer.json()["workers"]]
    assert standings == [("first", "counted", None), ("second", "declined", "on battery")]
    await pass_time(server, LOST_AFTER_S)
    assert [each["lost"] for each in await server.rounds("run-1")] == [0, 2]
