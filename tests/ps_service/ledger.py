# SPDX-License-Identifier: Apache-2.0
"""All that a parameter server keeps, read at one moment: every row of every table, and every file."""

import json
from dataclasses import dataclass
from functools import cached_property

from pydantic import TypeAdapter
from sqlalchemy import text

from protocol.messages import RoundStatus, RunSpec
from ps_service.round_machine import Round
from ps_service.run_machine import Run
from ps_service.storage import schema
from ps_service.storage.records import Records

RoundKey = tuple[str, int]
"""(run_id, number)."""
_ROUND = TypeAdapter(Round)
_RUN = TypeAdapter(Run)


@dataclass(frozen=True)
class Ledger:
    """What is kept, in the server's own words and by key."""

    rows: dict[str, list[dict]]
    files: tuple[str, ...]

    def changes_since(self, before: "Ledger") -> list[object]:
        """Rows and files that are there now and were not, or were and are not. Empty: nothing changed."""
        rows = [("now", table, row) for table, row in self._rows() if row not in before.rows[table]]
        rows += [("before", table, row) for table, row in before._rows() if row not in self.rows[table]]
        return [*rows, *sorted(set(self.files) ^ set(before.files))]

    def _rows(self) -> list[tuple[str, dict]]:
        return [(table, row) for table, rows in self.rows.items() for row in rows]

    @cached_property
    def runs(self) -> dict[str, Run]:
        return {row["run_id"]: _RUN.validate_json(row["state"]) for row in self.rows["runs"]}

    @cached_property
    def specs(self) -> dict[str, RunSpec]:
        return {row["run_id"]: RunSpec.model_validate_json(row["spec"]) for row in self.rows["runs"]}

    @cached_property
    def rounds(self) -> dict[RoundKey, Round]:
        return {key: _ROUND.validate_json(row["state"]) for key, row in self.round_rows.items()}

    @cached_property
    def round_rows(self) -> dict[RoundKey, dict]:
        return {(row["run_id"], row["number"]): row for row in self.rows["rounds"]}

    @cached_property
    def assignments(self) -> dict[str, dict]:
        """By id; those of the oldest run first, then by round, slot and turn, whatever their random ids."""
        place = {run_id: index for index, run_id in enumerate(self.runs)}
        rows = sorted(
            self.rows["assignments"],
            key=lambda row: (place[row["run_id"]], row["round"], row["slot"], row["turn"]),
        )
        return {row["assignment_id"]: row for row in rows}

    @cached_property
    def updates(self) -> dict[str, dict]:
        """{assignment_id: the update that was received for it}."""
        return {row["assignment_id"]: row for row in self.rows["updates"]}

    @cached_property
    def workers(self) -> dict[str, dict]:
        return {row["worker_id"]: row for row in self.rows["workers"]}

    @cached_property
    def versions(self) -> dict[RoundKey, dict]:
        """By (run_id, version)."""
        return {(row["run_id"], row["version"]): row for row in self.rows["versions"]}

    @cached_property
    def pending_effects(self) -> list[RoundKey]:
        """The rounds for which something is still to be performed."""
        return [(row["run_id"], row["round"]) for row in self.rows["effects"] if row["done_ms"] is None]

    def rounds_of(self, run_id: str) -> list[Round]:
        """Oldest first."""
        return [self.rounds[key] for key in sorted(key for key in self.rounds if key[0] == run_id)]

    def rounds_that_are(self, status: RoundStatus) -> dict[RoundKey, Round]:
        return {key: round_ for key, round_ in self.rounds.items() if round_.status is status}

    def invited_to(self, key: RoundKey) -> list[dict]:
        """The assignments of a round, by slot."""
        return [row for row in self.assignments.values() if (row["run_id"], row["round"]) == key]

    def updates_of(self, key: RoundKey) -> list[dict]:
        return [row for row in self.rows["updates"] if (row["run_id"], row["round"]) == key]

    def round_of(self, assignment_id: str) -> Round:
        row = self.assignments[assignment_id]
        return self.rounds[row["run_id"], row["round"]]

    def awaited(self) -> list[str]:
        """The assignments whose updates are still waited for."""
        return [assignment_id for assignment_id, row in self.assignments.items() if not row["settled"]]

    def is_asynchronous(self, run_id: str) -> bool:
        return self.specs[run_id].asynchronous is not None


async def read_ledger(records: Records, files: tuple[str, ...]) -> Ledger:
    """All rows, in one statement."""
    async with records.read() as connection:
        found = (await connection.execute(text(_EVERYTHING))).mappings().one()
    return Ledger({table: json.loads(rows) for table, rows in found.items()}, files)


def _rows_of(table: str, columns: list[str]) -> str:
    fields = ", ".join(f"'{column}', {column}" for column in columns)
    return f"(SELECT json_group_array(json_object({fields})) FROM {table}) AS {table}"


_EVERYTHING = "SELECT " + ", ".join(
    _rows_of(table.name, [column.name for column in table.columns])
    for table in schema.metadata.sorted_tables
    if table.name != "access_tokens"  # they come with whoever asks, and say nothing of runs
)
