# SPDX-License-Identifier: Apache-2.0
"""Which servers may use the database: older ones go on beside newer ones until a step shuts them out"""

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
    op.execute("INSERT INTO schema_compatibility VALUES ('0005')")
