# SPDX-License-Identifier: Apache-2.0
"""What all errors have in common; they themselves are in `errors`."""

from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """Who has to change something before it can work."""

    CALLER = "caller"
    PEER = "peer"
    SERVER = "server"


class FedSophiaError(Exception):
    """Something in fed-sophia went wrong, and its class says what."""

    code: ClassVar[str] = "internal"
    fault: ClassVar[Fault] = Fault.SERVER
    retryable: ClassVar[bool] = False
    retry_after_s: float = 1.0
    """How long to wait before trying again, where that may help."""

    @property
    def detail(self) -> str:
        """The sentence that names what was found and what was expected."""
        return str(self.args[0]) if self.args else (self.__doc__ or self.code)
