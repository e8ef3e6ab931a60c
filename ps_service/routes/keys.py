# SPDX-License-Identifier: Apache-2.0
"""Join tokens and operators' keys: made, listed, revoked."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from protocol.messages import JoinTokenIssued, JoinTokenRequest, JoinTokenSummary
from protocol.operator_keys import OperatorKeyIssued, OperatorKeyRequest, OperatorKeySummary, Scope
from ps_service.auth import Operator
from ps_service.openapi import BEARER
from ps_service.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["keys"], dependencies=[BEARER])
    auth, enrolling, keys = service.auth, service.enrolling, service.operator_keys
    # as dependencies, so that a stranger learns nothing of what a body should have been
    readers, writers = Depends(auth.operator(Scope.WORKERS_READ)), Depends(auth.operator(Scope.WORKERS_WRITE))
    KeyMaker = Annotated[Operator, Depends(auth.operator(Scope.KEYS_WRITE))]  # noqa: N806  # a type

    @routes.post("/tokens", status_code=201, dependencies=[writers])
    async def create_token(request: Request, response: Response, wanted: JoinTokenRequest) -> JoinTokenIssued:
        """Make a join token; it is shown this once."""
        response.headers["Cache-Control"] = "no-store"
        issued = await enrolling.issue_join_token(wanted)
        request.state.about = wanted.model_dump(mode="json") | {"token_id": issued.token_id}
        return issued

    @routes.get("/tokens", dependencies=[readers])
    async def list_tokens() -> dict[str, list[JoinTokenSummary]]:
        """Oldest first, those of no further use included; without their secrets."""
        return {"tokens": await enrolling.join_tokens()}

    @routes.delete("/tokens/{token_id}", status_code=204, dependencies=[writers])
    async def revoke_token(token_id: str) -> None:
        """Let no more devices enrol by it."""
        await enrolling.revoke_join_token(token_id)

    @routes.post("/keys", status_code=201)
    async def create_key(
        operator: KeyMaker, request: Request, response: Response, wanted: OperatorKeyRequest
    ) -> OperatorKeyIssued:
        """Make an operator's key; it is shown this once."""
        response.headers["Cache-Control"] = "no-store"
        issued = await keys.issue(operator, wanted)
        request.state.about = wanted.model_dump(mode="json") | {"key_id": issued.key_id}
        return issued

    @routes.get("/keys")
    async def list_keys(operator: KeyMaker) -> dict[str, list[OperatorKeySummary]]:
        """Oldest first, those of no further use included; without their secrets."""
        return {"keys": await keys.list()}

    @routes.delete("/keys/{key_id}", status_code=204)
    async def revoke_key(operator: KeyMaker, key_id: str) -> None:
        """Let a key be of use no more, at once."""
        await keys.revoke(operator, key_id)

    return routes
