# SPDX-License-Identifier: Apache-2.0
"""What a device signs to prove that it holds a key: a JWT, in the style of RFC 7523.

    header   alg Ed25519 (RFC 8037, RFC 9864), typ says what it is for, so that none stands in for another
    claims   iss = sub: the worker's id, or the key's thumbprint before there is one
             aud: the server's id, which the join token names; never its address, which differs by the way
             iat, exp: seconds; at most `LONGEST_S` apart
             jti: 128 random bits, by which the server knows it again
             use: to enrol: SHA-256 of the join token's secret; to consent to another key: its thumbprint

Both ends are here, so that they cannot come apart. The law of this file: no clock and no chance;
nothing that is signed is ever part of an error.
"""

import base64
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from protocol.errors import AssertionRefused, ClockSkewed

ALGORITHM = "Ed25519"
LEEWAY_S = 60
LONGEST_S = 300
LIFETIME_S = 60
"""How long what a worker signs is good for."""
MAX_ID = 64


class Purpose(StrEnum):
    """What an assertion is signed for."""

    ENROL = "fed-sophia-enrol+jwt"
    TOKEN = "fed-sophia-token+jwt"
    ROTATE = "fed-sophia-rotate+jwt"


@dataclass(frozen=True)
class Signed:
    """What an assertion says that holds."""

    assertion_id: str
    expires_s: int


def public_key_of(private_key: str) -> str:
    """The public half of 32 random bytes, both as base64url (RFC 8032: any 32 bytes are a private key)."""
    return str(_private(private_key).as_dict(private=False)["x"])


def thumbprint(public_key: str) -> str:
    """RFC 7638, by SHA-256, as base64url: 43 characters."""
    return str(_public(public_key).thumbprint())


def use_of(join_token_secret: str) -> str:
    """What a proof of possession says of the join token it goes with."""
    return hashlib.sha256(join_token_secret.encode()).hexdigest()


def sign(
    private_key: str,
    purpose: Purpose,
    subject: str,
    server_id: str,
    now_s: int,
    assertion_id: str,
    use: str | None = None,
) -> str:
    """Sign for one purpose at one server, good once and for a minute.

    Args:
        subject: the worker's id, or the key's thumbprint to enrol.
        assertion_id: not used before.
        use: `use_of` the join token, to enrol; a new key's thumbprint, to consent to it.
    """
    claims: dict[str, Any] = {
        "iss": subject,
        "sub": subject,
        "aud": server_id,
        "iat": now_s,
        "exp": now_s + LIFETIME_S,
        "jti": assertion_id,
    }
    if use is not None:
        claims["use"] = use
    header = {"alg": ALGORITHM, "typ": purpose.value}
    return jwt.encode(header, claims, _private(private_key), algorithms=[ALGORITHM])


def read(
    assertion: str,
    public_key: str,
    purpose: Purpose,
    subject: str,
    server_id: str,
    now_ms: int,
    use: str | None = None,
) -> Signed:
    """Check what was signed, against all that it must say.

    Raises:
        AssertionRefused: another key, another purpose, server, worker or join token, or no assertion at all.
        ClockSkewed: it is signed well, and its time is not now: more than 60 s off.
    """
    try:
        token = jwt.decode(assertion, _public(public_key), algorithms=[ALGORITHM])
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        raise AssertionRefused(f"the assertion is not signed by this key ({type(error).__name__})") from None
    claims = token.claims
    expected = {"iss": subject, "sub": subject, "aud": server_id, "use": use}
    if token.header.get("typ") != purpose.value:
        raise AssertionRefused(f"the assertion's typ: expected {purpose.value}")
    for name, value in expected.items():
        if claims.get(name) != value:
            raise AssertionRefused(f"the assertion's {name} is not what it must be here")
    signed_s, expires_s, assertion_id = claims.get("iat"), claims.get("exp"), claims.get("jti")
    if type(signed_s) is not int or type(expires_s) is not int:
        raise AssertionRefused("the assertion's iat and exp: expected whole seconds")
    if not 0 <= expires_s - signed_s <= LONGEST_S:
        raise AssertionRefused(
            f"the assertion is to be good for more than {LONGEST_S} s, or for less than none"
        )
    if not isinstance(assertion_id, str) or not (
        16 <= len(assertion_id) <= MAX_ID and assertion_id.isascii()
    ):
        raise AssertionRefused(f"the assertion's jti: expected 16 to {MAX_ID} characters of ASCII")
    if not signed_s - LEEWAY_S <= now_ms / 1000 <= expires_s + LEEWAY_S:
        raise ClockSkewed(
            f"the assertion was signed at {signed_s} s and is good until {expires_s} s; here it is "
            f"{now_ms // 1000} s: the device's clock is off",
            now_ms,
        )
    return Signed(assertion_id, expires_s)


def _private(private_key: str) -> OKPKey:
    return OKPKey.import_key(Ed25519PrivateKey.from_private_bytes(_bytes(private_key)))


def _public(public_key: str) -> OKPKey:
    return OKPKey.import_key(Ed25519PublicKey.from_public_bytes(_bytes(public_key)))


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
