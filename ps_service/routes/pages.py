# SPDX-License-Identifier: Apache-2.0
"""Listings in pages: `limit` rows, beginning behind `after`."""

from typing import Annotated

from fastapi import Query

from ps_service.storage.run_records import MOST_ROWS

Limit = Annotated[int, Query(ge=1, le=MOST_ROWS)]
