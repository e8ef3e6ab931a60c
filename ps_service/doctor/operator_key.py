# SPDX-License-Identifier: Apache-2.0
"""Whether the operator key that the server is given can be used."""

from protocol.errors import InvalidUsage
from ps_service.doctor.finding import Finding, error, ok, warning
from ps_service.given_key import everybody_reads, given_key
from ps_service.settings import Settings


def check_operator_key(settings: Settings) -> Finding:
    file = settings.server_operator_key_file
    if file is None:
        return ok("none is given: the first start makes one")
    try:
        given_key(file)
    except InvalidUsage as met:
        return error(met.detail, "the server does not start with it")
    if everybody_reads(file):
        return warning(f"everybody on this machine can read {file}", f"chmod o= {file}")
    return ok(f"{file} holds one")
