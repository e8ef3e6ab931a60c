# SPDX-License-Identifier: Apache-2.0
"""Which servers may use the database, older beside newer until a step shuts them out; what is condemned"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    in_order_of_bytes = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")
    op.create_table(
        "schema_compatibility",
        sa.Column("oldest", in_order_of_bytes, nullable=False),
        sa.PrimaryKeyConstraint("oldest", name="pk_schema_compatibility"),
    )
    op.execute("INSERT INTO schema_compatibility VALUES ('0006')")
    digest = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
    op.create_table(
        "condemned",
        sa.Column("digest", digest, nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_condemned"),
    )
