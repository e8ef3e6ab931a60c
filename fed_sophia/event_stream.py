# SPDX-License-Identifier: Apache-2.0
"""Server-sent events, read from lines (WHATWG HTML, section 9.2)."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerEvent:
    """One event of a run: `kind` is run, round or metrics; `data` is JSON."""

    kind: str
    id: str
    data: str


async def read_events(lines: AsyncIterator[str]) -> AsyncGenerator[ServerEvent, None]:
    """Give each event as soon as its blank line has come; comments and an unfinished event are dropped."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data" and "data" in fields:
                value = f"{fields['data']}\n{value}"
            if name:
                fields[name] = value
        elif "data" in fields:
            yield ServerEvent(fields.get("event", "message"), fields.get("id", ""), fields["data"])
            fields = {}
        else:
            fields = {}
