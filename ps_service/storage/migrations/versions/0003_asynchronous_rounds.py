# SPDX-License-Identifier: Apache-2.0
"""Assignments that outlive their rounds: each names its version, and its turn among those of its slot"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("members", sa.Column("turns", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("members", sa.Column("free_since_ms", sa.BigInteger()))
    op.execute("UPDATE members SET free_since_ms = 0")
    op.create_index("ix_members_run_id_free_since_ms_slot", "members", ["run_id", "free_since_ms", "slot"])
    op.create_index("ix_updates_run_id_outcome", "updates", ["run_id", "outcome"])
    op.create_index("ix_updates_run_id_version", "updates", ["run_id", "version"])
    op.add_column("assignments", sa.Column("version", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("assignments", sa.Column("turn", sa.Integer(), nullable=False, server_default="0"))
    _name_versions(op.get_bind())
    with op.batch_alter_table("members") as members:
        members.alter_column("turns", server_default=None)
    with op.batch_alter_table("assignments") as assignments:
        assignments.alter_column("version", server_default=None)
        assignments.alter_column("turn", server_default=None)
        assignments.drop_constraint("uq_assignments_run_id_round_slot", type_="unique")
        assignments.create_unique_constraint("uq_assignments_run_id_slot_turn", ["run_id", "slot", "turn"])
    op.create_index("ix_assignments_run_id_round_slot", "assignments", ["run_id", "round", "slot"])
    op.create_index("ix_assignments_run_id_settled", "assignments", ["run_id", "settled"])


def _name_versions(connection: sa.Connection) -> None:
    """Until now there was one assignment a slot and round, made from the version the round began with."""
    connection.execute(sa.text("UPDATE assignments SET turn = round"))
    rounds = connection.execute(sa.text("SELECT run_id, number, state FROM rounds")).all()
    named = [
        {"run_id": run_id, "number": number, "version": json.loads(state)["base_version"]}
        for run_id, number, state in rounds
    ]
    if named:
        of_round = "UPDATE assignments SET version = :version WHERE run_id = :run_id AND round = :number"
        connection.execute(sa.text(of_round), named)
