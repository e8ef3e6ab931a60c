# SPDX-License-Identifier: Apache-2.0
"""Menu: the endpoints. To add one, copy `health.py` and add a line to `ROUTERS`."""

from collections.abc import Callable

from fastapi import APIRouter

from ps_service.routes import (
    archives,
    assignments,
    ca,
    events,
    health,
    keys,
    runs,
    stored,
    tensors,
    uploads,
    workers,
)
from ps_service.service import Service

ROUTERS: tuple[Callable[[Service], APIRouter], ...] = (
    assignments.router,  # those that workers ask most stand first: routes are tried in this order
    uploads.router,
    stored.router,
    tensors.router,
    workers.router,
    runs.router,
    keys.router,
    archives.router,
    events.router,
    ca.router,
    health.router,
)
