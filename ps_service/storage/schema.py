# SPDX-License-Identifier: Apache-2.0
"""The tables, from which a new database is made.

A change here needs a migration in `migrations/versions/` for those there are; a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)
from sqlalchemy.types import TypeEngine

_INTEGER = Integer().with_variant(BigInteger(), "postgresql")
"""SQLite's has 64 bits as it is."""


def _string(length: int) -> TypeEngine[str]:
    """Text in the order of its bytes, whatever the locale: all databases give one order to a set of names."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

schema_compatibility = Table(
    "schema_compatibility",
    metadata,
    Column("oldest", _string(32), primary_key=True),
)
"""One row, beside alembic's own: the oldest schema whose servers may still use the database."""

operator_keys = Table(
    "operator_keys",
    metadata,
    Column("secret_hash", _string(64), primary_key=True),
    Column("key_id", _string(64), nullable=False, unique=True),
    Column("label", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
)

server_identity = Table(
    "server_identity",
    metadata,
    Column("server_id", _string(64), primary_key=True),
    Column("created_ms", BigInteger, nullable=False),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("token_id", _string(64), primary_key=True),
    Column("secret_hash", _string(64), nullable=False, unique=True),
    Column("label", Text, nullable=False),
    Column("role", _string(16), nullable=False),
    Column("uses_left", _INTEGER, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("run_id", _string(64)),
    Column("approve", Boolean, nullable=False),
    Column("idle_s", _INTEGER),
    Column("revoked_ms", BigInteger),
)

workers = Table(
    "workers",
    metadata,
    Column("worker_id", _string(64), primary_key=True),
    Column("name", _string(64), nullable=False),
    Column("key_thumbprint", _string(43), unique=True),
    Column("public_key", _string(43)),
    Column("token_id", _string(64)),
    Column("label", Text, nullable=False),
    Column("run_id", _string(64)),
    Column("idle_s", _INTEGER),
    Column("role", _string(16), nullable=False),
    Column("tasks", Text, nullable=False),
    Column("enrolled_ms", BigInteger, nullable=False),
    Column("approved_ms", BigInteger),
    Column("last_seen_ms", BigInteger, nullable=False),
    Column("lost_ms", BigInteger),
    Column("expired_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("refusals", _INTEGER, nullable=False),
    Column("quarantined_ms", BigInteger),
    Column("device", Text),
)

access_tokens = Table(
    "access_tokens",
    metadata,
    Column("token_hash", _string(64), primary_key=True),
    Column(
        "worker_id",
        ForeignKey("workers.worker_id", name="fk_access_tokens_worker_id_workers"),
        nullable=False,
    ),
    Column("assertion_id", _string(64), nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("forget_ms", BigInteger, nullable=False, index=True),
    UniqueConstraint("worker_id", "assertion_id"),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", _string(64), primary_key=True),
    Column("task", _string(128), nullable=False),
    Column("status", _string(16), nullable=False, index=True),
    Column("spec", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("worker_id", ForeignKey("workers.worker_id"), primary_key=True),
    Column("slot", _INTEGER),
    Column("turns", _INTEGER, nullable=False),
    Column("free_since_ms", BigInteger),
    UniqueConstraint("run_id", "slot"),
    Index(None, "run_id", "free_since_ms", "slot"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("number", _INTEGER, primary_key=True),
    Column("status", _string(16), nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    Column("bytes_down", BigInteger, nullable=False),
    Column("metrics", Text),
    Index(None, "status", "deadline_ms"),
)

versions = Table(
    "versions",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("version", _INTEGER, primary_key=True),
    Column("round", _INTEGER),
    Column("tensors", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("collected_ms", BigInteger),
)

state_tensors = Table(
    "state_tensors",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("digest", _string(64), primary_key=True, index=True),
)

assignments = Table(
    "assignments",
    metadata,
    Column("assignment_id", _string(64), primary_key=True),
    Column("run_id", ForeignKey("runs.run_id"), nullable=False),
    Column("round", _INTEGER, nullable=False),
    Column("version", _INTEGER, nullable=False),
    Column("worker_id", ForeignKey("workers.worker_id"), nullable=False),
    Column("slot", _INTEGER, nullable=False),
    Column("turn", _INTEGER, nullable=False),
    Column("declined_reason", Text),
    Column("refused_code", _string(64)),
    Column("lost_ms", BigInteger),
    Column("settled", Boolean, nullable=False),
    UniqueConstraint("run_id", "slot", "turn"),
    Index(None, "run_id", "round", "slot"),
    Index(None, "run_id", "settled"),
    Index(None, "worker_id", "settled"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("upload_id", _string(64), primary_key=True),
    Column("assignment_id", ForeignKey("assignments.assignment_id"), nullable=False, unique=True),
    Column("header", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

updates = Table(
    "updates",
    metadata,
    Column("assignment_id", ForeignKey("assignments.assignment_id"), primary_key=True),
    Column("run_id", ForeignKey("runs.run_id"), nullable=False),
    Column("round", _INTEGER, nullable=False),
    Column("slot", _INTEGER, nullable=False),
    Column("digest", _string(64), nullable=False, index=True),
    Column("header", Text, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("outcome", _string(16), nullable=False),
    Column("version", _INTEGER),
    Column("reason", Text),
    Column("collected_ms", BigInteger),
    Column("admitted", _string(16), nullable=False, server_default="on-arrival"),
    Index(None, "run_id", "round", "slot"),
    Index(None, "run_id", "outcome"),
    Index(None, "run_id", "version"),
)

effects = Table(
    "effects",
    metadata,
    Column("effect_id", _INTEGER, primary_key=True),
    Column("kind", _string(16), nullable=False),
    Column("run_id", ForeignKey("runs.run_id"), nullable=False),
    Column("round", _INTEGER, nullable=False),
    Column("done_ms", BigInteger, index=True),
)

leases = Table(
    "leases",
    metadata,
    Column("effect_id", ForeignKey("effects.effect_id"), primary_key=True),
    Column("holder", _string(64), nullable=False),
    Column("until_ms", BigInteger, nullable=False),
)

servers = Table(
    "servers",
    metadata,
    Column("name", _string(64), primary_key=True),
    Column("seen_ms", BigInteger, nullable=False),
)

condemned = Table(
    "condemned",
    metadata,
    Column("digest", _string(64), primary_key=True),
    Column("since_ms", BigInteger, nullable=False),
    Column("gone", Boolean, nullable=False, server_default=false()),
    Column("deletion", BigInteger, nullable=False, server_default="0", index=True),
    Index(None, "gone", "since_ms"),
)

metrics = Table(
    "metrics",
    metadata,
    Column("run_id", ForeignKey("runs.run_id"), primary_key=True),
    Column("version", _INTEGER, primary_key=True),
    Column("worker_id", ForeignKey("workers.worker_id"), primary_key=True),
    Column("report", Text, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("event_id", _INTEGER, primary_key=True),
    Column("run_id", ForeignKey("runs.run_id"), nullable=False),
    Column("kind", _string(16), nullable=False),
    Column("round", _INTEGER),
    Column("at_ms", BigInteger, nullable=False),
    Column("data", Text, nullable=False),
    Index(None, "run_id", "event_id"),
    sqlite_autoincrement=True,
)
