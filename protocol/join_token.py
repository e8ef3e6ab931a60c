# SPDX-License-Identifier: Apache-2.0
"""What a join token says: a secret, which server it is for, and by which CA that server is known.

    fsj_SECRET.SERVER[.CA]      43 characters base64url . 16 hex . 64 hex

Only the secret is one. The server's id is what a device's signatures are meant for, so that none of them is
of use at another server; the hash is that of the CA's public key, to be pinned at first contact.
"""

import re
from dataclasses import dataclass
from typing import Self

from protocol.errors import InvalidUsage

_FORM = re.compile(
    r"fsj_(?P<secret>[A-Za-z0-9_-]{43})\.(?P<server_id>[0-9a-f]{16})(?:\.(?P<ca_hash>[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class JoinToken:
    """A join token, taken apart. `str()` gives it back."""

    secret: str
    """What the server knows it by; 256 random bits."""
    server_id: str
    ca_hash: str | None = None
    """SHA-256 of the DER SubjectPublicKeyInfo of the server's CA, in hex; None: nothing is pinned."""

    def __str__(self) -> str:
        pinned = f".{self.ca_hash}" if self.ca_hash else ""
        return f"fsj_{self.secret}.{self.server_id}{pinned}"

    def __repr__(self) -> str:
        return f"JoinToken(fsj_…, server {self.server_id})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a token apart.

        Raises:
            InvalidUsage: it is none; nothing of it is repeated.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise InvalidUsage(
                "that is no join token: expected fsj_….….…, as `fed-sophia token create` prints it"
            )
        return cls(found["secret"], found["server_id"], found["ca_hash"])
