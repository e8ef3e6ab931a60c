# SPDX-License-Identifier: Apache-2.0
"""Updates that went to the store past the server: servers that would not look into them are shut out"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    in_order_of_bytes = sa.String(16).with_variant(sa.String(16, collation="C"), "postgresql")
    op.add_column(
        "updates", sa.Column("admitted", in_order_of_bytes, nullable=False, server_default="on-arrival")
    )
    op.execute("UPDATE schema_compatibility SET oldest = '0007'")
