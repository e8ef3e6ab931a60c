# SPDX-License-Identifier: Apache-2.0
"""Several servers: which of them are there, and which performs an effect"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("effect_id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["effect_id"], ["effects.effect_id"], name="fk_leases_effect_id"),
        sa.PrimaryKeyConstraint("effect_id", name="pk_leases"),
    )
    op.create_table(
        "servers",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_servers"),
    )
