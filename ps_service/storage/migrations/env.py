# SPDX-License-Identifier: Apache-2.0
"""What alembic runs; the connection comes from `migrations.upgrade`."""

from alembic import context

from ps_service.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
    if check := context.config.attributes.get("check"):
        check()
