# SPDX-License-Identifier: Apache-2.0
"""Updates that went to the store past the server, deletions by number: who knows neither is shut out"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    in_order_of_bytes = sa.String(16).with_variant(sa.String(16, collation="C"), "postgresql")
    op.add_column(
        "updates", sa.Column("admitted", in_order_of_bytes, nullable=False, server_default="on-arrival")
    )
    op.add_column("condemned", sa.Column("gone", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("condemned", sa.Column("deletion", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index("ix_condemned_deletion", "condemned", ["deletion"])
    op.create_index("ix_condemned_gone_since_ms", "condemned", ["gone", "since_ms"])
    op.execute("UPDATE schema_compatibility SET oldest = '0007'")
