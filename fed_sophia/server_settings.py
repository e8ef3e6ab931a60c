# SPDX-License-Identifier: Apache-2.0
"""The settings of a server, as the environment and a command's options give them."""

from typing import TYPE_CHECKING

from protocol.errors import InvalidUsage

if TYPE_CHECKING:
    from pydantic import ValidationError

    from ps_service.settings import Settings


def server_settings(**given: object) -> "Settings":
    """What is given, over what the environment says.

    Raises:
        InvalidUsage: one of them is none; the sentence names its variable.
    """
    from pydantic import ValidationError

    from ps_service.settings import Settings

    try:
        return Settings(**given)  # type: ignore[arg-type]  # it looks at each by itself
    except ValidationError as error:
        raise InvalidUsage(problems(error)[0]) from None


def problems(error: "ValidationError") -> list[str]:
    """What is wrong with each setting that is; no value, which may be a secret."""
    return [
        f"FED_SOPHIA_{'_'.join(str(part) for part in each['loc']).upper()}: {each['msg']}"
        for each in error.errors(include_input=False, include_url=False)
    ]
