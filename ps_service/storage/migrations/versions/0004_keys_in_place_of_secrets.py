# SPDX-License-Identifier: Apache-2.0
"""Workers have keys instead of secrets, operators' keys have scopes, join tokens say more

Workers of before have no key: each enrols again, with a fresh join token.
"""

import json
import secrets

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

ALL_SCOPES = ("runs:write", "workers:write", "metrics:read", "keys:write")
"""Of the operators' keys of before: they could do everything."""


def upgrade() -> None:
    op.create_table(
        "server_identity",
        sa.Column("server_id", sa.String(64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("server_id", name="pk_server_identity"),
    )
    _workers()
    _join_tokens()
    _operator_keys()
    op.create_table(
        "access_tokens",
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("worker_id", sa.String(64), nullable=False),
        sa.Column("assertion_id", sa.String(64), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("forget_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["worker_id"], ["workers.worker_id"], name="fk_access_tokens_worker_id_workers"
        ),
        sa.PrimaryKeyConstraint("token_hash", name="pk_access_tokens"),
        sa.UniqueConstraint("worker_id", "assertion_id", name="uq_access_tokens_worker_id_assertion_id"),
    )
    op.create_index("ix_access_tokens_forget_ms", "access_tokens", ["forget_ms"])


def _workers() -> None:
    with op.batch_alter_table("workers") as workers:
        workers.drop_constraint("uq_workers_secret_hash", type_="unique")
        workers.drop_column("secret_hash")
        workers.add_column(sa.Column("key_thumbprint", sa.String(43)))
        workers.add_column(sa.Column("public_key", sa.String(43)))
        workers.add_column(sa.Column("token_id", sa.String(64)))
        workers.add_column(sa.Column("label", sa.Text(), nullable=False, server_default="default"))
        workers.add_column(sa.Column("run_id", sa.String(64)))
        workers.add_column(sa.Column("idle_s", sa.Integer()))
        workers.add_column(sa.Column("approved_ms", sa.BigInteger()))
        workers.add_column(sa.Column("expired_ms", sa.BigInteger()))
        workers.add_column(sa.Column("refusals", sa.Integer(), nullable=False, server_default="0"))
        workers.add_column(sa.Column("quarantined_ms", sa.BigInteger()))
        workers.create_unique_constraint("uq_workers_key_thumbprint", ["key_thumbprint"])
    op.execute("UPDATE workers SET approved_ms = enrolled_ms")
    with op.batch_alter_table("workers") as workers:
        workers.alter_column("label", server_default=None)
        workers.alter_column("refusals", server_default=None)


def _join_tokens() -> None:
    op.add_column("join_tokens", sa.Column("run_id", sa.String(64)))
    op.add_column(
        "join_tokens", sa.Column("approve", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("join_tokens", sa.Column("idle_s", sa.Integer()))
    op.add_column("join_tokens", sa.Column("revoked_ms", sa.BigInteger()))
    with op.batch_alter_table("join_tokens") as join_tokens:
        join_tokens.alter_column("approve", server_default=None)


def _operator_keys() -> None:
    op.add_column("operator_keys", sa.Column("key_id", sa.String(64), nullable=False, server_default=""))
    op.add_column("operator_keys", sa.Column("scopes", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("operator_keys", sa.Column("expires_ms", sa.BigInteger()))
    op.add_column("operator_keys", sa.Column("revoked_ms", sa.BigInteger()))
    connection = op.get_bind()
    hashes = connection.execute(sa.text("SELECT secret_hash FROM operator_keys")).scalars().all()
    for secret_hash in hashes:
        connection.execute(
            sa.text(
                "UPDATE operator_keys SET key_id = :key_id, scopes = :scopes WHERE secret_hash = :secret"
            ),
            {
                "key_id": f"k-{secrets.token_hex(6)}",
                "scopes": json.dumps(ALL_SCOPES),
                "secret": secret_hash,
            },
        )
    with op.batch_alter_table("operator_keys") as operator_keys:
        operator_keys.alter_column("key_id", server_default=None)
        operator_keys.alter_column("scopes", server_default=None)
        operator_keys.create_unique_constraint("uq_operator_keys_key_id", ["key_id"])
