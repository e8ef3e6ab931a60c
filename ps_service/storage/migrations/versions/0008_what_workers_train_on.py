# SPDX-License-Identifier: Apache-2.0
"""What workers train on: who does not know of it leaves it as it is"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("workers", sa.Column("device", sa.Text()))
