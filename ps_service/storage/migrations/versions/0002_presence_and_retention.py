# SPDX-License-Identifier: Apache-2.0
"""Who is lost, what was refused, and what is no longer kept"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NEW_COLUMNS = (
    ("workers", sa.Column("lost_ms", sa.BigInteger())),
    ("assignments", sa.Column("refused_code", sa.String(64))),
    ("assignments", sa.Column("lost_ms", sa.BigInteger())),
    ("rounds", sa.Column("metrics", sa.Text())),
    ("versions", sa.Column("collected_ms", sa.BigInteger())),
    ("updates", sa.Column("collected_ms", sa.BigInteger())),
)


def upgrade() -> None:
    for table, column in NEW_COLUMNS:
        op.add_column(table, column)
    op.create_index("ix_state_tensors_digest", "state_tensors", ["digest"])
    op.create_index("ix_updates_digest", "updates", ["digest"])
