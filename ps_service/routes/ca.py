# SPDX-License-Identifier: Apache-2.0
"""By which CA this server is to be trusted: what a device asks before it trusts anyone."""

from fastapi import APIRouter, Response

from protocol.errors import NotFound
from ps_service.service import Service

MEDIA_TYPE = "application/pem-certificate-chain"


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["trust"])

    @routes.get(
        "/v1/ca",
        response_class=Response,
        responses={200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}},
    )
    async def ca() -> Response:
        """The certificate of the CA to pin, as PEM; a join token's hash tells whether it is the right one."""
        if service.ca is None:
            raise NotFound("this server advertises no CA")
        return Response(service.ca.pem, media_type=MEDIA_TYPE)

    return routes
