# SPDX-License-Identifier: Apache-2.0
"""What the application says of itself at `/openapi.json`, where the framework alone would say it wrongly."""

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from protocol.codec import MEDIA_TYPE, PART_MEDIA_TYPE
from protocol.messages import Problem

BEARER = Depends(HTTPBearer(auto_error=False, description="Operator key, join token or access token."))
"""Describes the credential, and checks nothing: `auth` does."""

PROBLEM: dict[str, Any] = {"model": Problem, "description": "A problem: its `code` says which."}
NOTHING_YET: dict[str, Any] = {
    "description": "Nothing to do yet: ask again.",
    "headers": {
        "Next-Wait": {
            "description": "Seconds to wait the next time, by `Prefer: wait=`, if the way there bears it.",
            "schema": {"type": "integer"},
        },
        "Retry-After": {
            "description": "The server stops: seconds after which to come back.",
            "schema": {"type": "integer"},
        },
    },
}
BINARY = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
TENSORS_SENT = {"requestBody": {"required": True, "content": BINARY}}
PART_SENT = {
    "requestBody": {
        "required": True,
        "content": {PART_MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    },
    "parameters": [
        {"in": "header", "name": "Upload-Offset", "required": True, "schema": {"type": "integer"}},
        {"in": "header", "name": "Upload-Complete", "schema": {"type": "string", "enum": ["?0", "?1"]}},
    ],
}
TENSORS_ANSWERED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole tensor message.", "content": BINARY},
    206: {"description": "The part of it that `Range` asked for.", "content": BINARY},
    304: {"description": "The caller has it: `If-None-Match` names it."},
    307: {"description": "It is to be had at `Location`: the caller's `Prefer: presigned` takes that."},
    416: {"description": "`Range` begins after the end.", "model": Problem},
}
EVENTS_ANSWERED = {
    "description": "Events as they happen, until the run has ended.",
    "content": {"text/event-stream": {}},
}
TEXT_ANSWERED = {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}


class DescribedApp(FastAPI):
    """An application whose refusals are described as `application/problem+json`."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            for path in super().openapi()["paths"].values():
                for operation in path.values():
                    for answer in operation["responses"].values():
                        _name_problems(answer.get("content", {}))
        described: dict[str, Any] = self.openapi_schema or {}
        return described


def _name_problems(content: dict[str, Any]) -> None:
    for media_type, described in list(content.items()):
        if described.get("schema", {}).get("$ref") == "#/components/schemas/Problem":
            content["application/problem+json"] = content.pop(media_type)
