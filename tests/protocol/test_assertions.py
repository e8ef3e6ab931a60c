# SPDX-License-Identifier: Apache-2.0
"""What proves that a device holds a key, and all that does not: signed by hand, to test both ends."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.assertions import Purpose, public_key_of, read, sign, thumbprint, use_of
from protocol.errors import AssertionRefused, ClockSkewed

SERVER = "0123456789abcdef"
WORKER = "w-1"
NOW_S = 1_800_000_000
ID = "i" * 16
USE = use_of("s" * 43)
CLAIMS: dict[str, object] = {
    "iss": WORKER,
    "sub": WORKER,
    "aud": SERVER,
    "iat": NOW_S,
    "exp": NOW_S + 60,
    "jti": ID,
}
HEADER: dict[str, object] = {"alg": "Ed25519", "typ": "fed-sophia-token+jwt"}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


KEY, OTHER_KEY = base64url(bytes(range(32))), base64url(bytes(range(1, 33)))
PUBLIC_KEY = public_key_of(KEY)


def by_hand(claims: object, header: object = HEADER, key: str = KEY) -> str:
    """A token whose signature is right, whatever is in it."""
    return with_signature(claims, header, lambda signed: signer(key).sign(signed))


def with_signature(claims: object, header: object, signature: object) -> str:
    signed = ".".join(base64url(as_bytes(part)) for part in (header, claims))
    made = signature(signed.encode()) if callable(signature) else signature
    assert isinstance(made, bytes)
    return f"{signed}.{base64url(made)}"


def as_bytes(part: object) -> bytes:
    return part if isinstance(part, bytes) else json.dumps(part).encode()


def signer(key: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(base64.urlsafe_b64decode(key + "="))


def refused(assertion: str, now_ms: int = NOW_S * 1000, use: str | None = None) -> str:
    """Why it is refused; nothing of it is in what is said, or behind it."""
    with pytest.raises(AssertionRefused) as refusal:
        read(assertion, PUBLIC_KEY, Purpose.TOKEN, WORKER, SERVER, now_ms, use)
    said = repr(refusal.value) + str(refusal.value) + refusal.value.detail
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None
    assert not any(part in said for part in assertion.split(".") if len(part) > 8)
    return refusal.value.detail


def accepted(assertion: str, now_ms: int = NOW_S * 1000) -> bool:
    return read(assertion, PUBLIC_KEY, Purpose.TOKEN, WORKER, SERVER, now_ms).assertion_id == ID


def without(name: str) -> Mapping[str, object]:
    return {other: value for other, value in CLAIMS.items() if other != name}


# --- what holds --------------------------------------------------------------------------------


def test_what_is_signed_by_hand_as_the_document_says_holds():
    signed = read(by_hand(CLAIMS), PUBLIC_KEY, Purpose.TOKEN, WORKER, SERVER, NOW_S * 1000)
    assert (signed.assertion_id, signed.expires_s) == (ID, NOW_S + 60)


@pytest.mark.parametrize("purpose", Purpose)
def test_what_is_signed_holds_for_its_purpose_and_for_no_other(purpose: Purpose):
    assertion = sign(KEY, purpose, WORKER, SERVER, NOW_S, ID)
    for other in Purpose:
        if other is purpose:
            read(assertion, PUBLIC_KEY, other, WORKER, SERVER, NOW_S * 1000)
        else:
            with pytest.raises(AssertionRefused, match=r"typ: expected fed-sophia-\w+\+jwt"):
                read(assertion, PUBLIC_KEY, other, WORKER, SERVER, NOW_S * 1000)


def test_it_holds_for_the_join_token_that_it_was_signed_for_and_for_no_other():
    assertion = sign(KEY, Purpose.ENROL, WORKER, SERVER, NOW_S, ID, USE)
    read(assertion, PUBLIC_KEY, Purpose.ENROL, WORKER, SERVER, NOW_S * 1000, USE)
    for other in (None, use_of("t" * 43), USE.upper()):
        with pytest.raises(AssertionRefused, match="use"):
            read(assertion, PUBLIC_KEY, Purpose.ENROL, WORKER, SERVER, NOW_S * 1000, other)


def test_what_is_said_besides_changes_nothing():
    assert accepted(by_hand(CLAIMS | {"more": [1, {"deep": None}]}, HEADER | {"kid": "k"}))


def test_the_signature_is_that_of_the_standard():
    """RFC 8032, section 7.1, test 1: the key pair; RFC 8037, appendix A.3: its thumbprint."""
    private = base64url(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert public_key_of(private) == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert thumbprint(public_key_of(private)) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_one_key_has_one_thumbprint_however_its_last_character_is_written():
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(PUBLIC_KEY[-1])
    assert last % 4 == 0, "two bits of the last character mean nothing"
    written = {PUBLIC_KEY[:-1] + alphabet[last + spare] for spare in range(4)}
    assert len(written) == 4
    assert {thumbprint(each) for each in written} == {thumbprint(PUBLIC_KEY)}
    for each in written:
        read(by_hand(CLAIMS), each, Purpose.TOKEN, WORKER, SERVER, NOW_S * 1000)


# --- who signed --------------------------------------------------------------------------------


def test_what_another_key_signed_is_refused():
    assert "not signed by this key" in refused(by_hand(CLAIMS, key=OTHER_KEY))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", ""])
def test_what_is_not_signed_at_all_is_refused(alg: str):
    for signature in (b"", b"\0" * 64):
        refused(with_signature(CLAIMS, HEADER | {"alg": alg}, signature))
    refused(with_signature(CLAIMS, HEADER, b""))


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_the_public_key_is_no_secret_to_sign_with(alg: str):
    kind = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[alg]
    public_key = signer(KEY).public_key().public_bytes_raw()
    pem = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(public_key)
    for secret in (public_key, PUBLIC_KEY.encode(), pem):

        def signature(signed: bytes, secret: bytes = secret) -> bytes:
            return hmac.digest(secret, signed, kind)

        refused(with_signature(CLAIMS, HEADER | {"alg": alg}, signature))


@pytest.mark.parametrize("alg", ["EdDSA", "ES256", "Ed448", "ed25519", 3, None, ["Ed25519"]])
def test_no_other_name_of_an_algorithm_is_taken_even_where_the_key_signed(alg: object):
    refused(by_hand(CLAIMS, HEADER | {"alg": alg}))


def test_a_key_that_comes_with_the_assertion_is_not_looked_at():
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": public_key_of(OTHER_KEY)}
    refused(by_hand(CLAIMS, HEADER | {"jwk": jwk}, key=OTHER_KEY))


def test_the_parts_of_two_assertions_make_no_third():
    first, second = (by_hand(CLAIMS | {"jti": letter * 16}).split(".") for letter in "ab")
    refused(".".join([first[0], second[1], first[2]]))
    refused(".".join([first[0], first[1], second[2]]))


def test_not_one_bit_of_the_signature_may_change():
    header, claims, signature = by_hand(CLAIMS).split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    for position in range(0, 512, 37):
        flipped = bytearray(raw)
        flipped[position // 8] ^= 1 << position % 8
        refused(f"{header}.{claims}.{base64url(bytes(flipped))}")


def test_what_is_cut_off_is_refused_wherever_it_is_cut():
    whole = by_hand(CLAIMS)
    for length in range(len(whole)):
        refused(whole[:length])


@pytest.mark.parametrize(
    "assertion",
    [
        "x" * 10_000_000,
        "." * 100_000,
        "é.é.é",
        "a.b.c",
        "\0",
        by_hand(b"[" * 1500),
        by_hand(b"[]"),
        by_hand(b"null"),
        by_hand(b"\xff"),
        by_hand(CLAIMS, b"[]"),
        by_hand(CLAIMS, b"null"),
        by_hand(CLAIMS, b'{"alg":' + b"[" * 1500),
        by_hand(CLAIMS | {"more": "x" * 100_000}),
        by_hand(CLAIMS, HEADER | {"more": "x" * 100_000}),
        by_hand(CLAIMS, HEADER | {"crit": ["exp"]}),
        by_hand(CLAIMS, HEADER | {"crit": 3}),
        by_hand(CLAIMS, HEADER | {"b64": False, "crit": ["b64"]}),
        by_hand(as_bytes(CLAIMS)[:-1] + b',"iat":' + b"1" * 5000 + b"}"),
    ],
    ids=lambda assertion: assertion[:8],
)
def test_what_is_huge_deep_or_no_assertion_at_all_is_refused(assertion: str):
    refused(assertion)


# --- what it says ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typ",
    ["JWT", "at+jwt", "fed-sophia-enrol+jwt", "fed-sophia-rotate+jwt", "FED-SOPHIA-TOKEN+JWT", "", None],
)
def test_what_was_signed_for_something_else_is_refused(typ: object):
    refused(by_hand(CLAIMS, HEADER | {"typ": typ}))


def test_what_does_not_say_what_it_is_for_is_refused():
    assert "typ" in refused(by_hand(CLAIMS, {"alg": "Ed25519"}))


@pytest.mark.parametrize("name", CLAIMS)
def test_what_leaves_a_claim_out_is_refused(name: str):
    refused(by_hand(without(name)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("aud", "fedcba9876543210"),
        ("aud", [SERVER]),
        ("aud", [SERVER, "fedcba9876543210"]),
        ("aud", SERVER.upper()),
        ("sub", "w-2"),
        ("sub", [WORKER]),
        ("sub", ""),
        ("iss", "w-2"),
        ("iss", None),
        ("use", USE),
        ("jti", "i" * 15),
        ("jti", "i" * 65),
        ("jti", 1234567890123456),
        ("jti", 0.5),
        ("jti", True),
        ("jti", ["i"] * 16),
        ("jti", "\ud800" * 16),
    ],
)
def test_what_says_anything_else_than_it_must_is_refused_and_named(name: str, value: object):
    assert name in refused(by_hand(CLAIMS | {name: value}))


@pytest.mark.parametrize("name", ["iat", "exp"])
@pytest.mark.parametrize(
    "value", [float(NOW_S), NOW_S + 0.5, True, False, str(NOW_S), None, [NOW_S], float("nan")]
)
def test_times_are_whole_seconds_and_nothing_else(name: str, value: object):
    refused(by_hand(CLAIMS | {name: value}))


def test_five_minutes_are_the_longest_life_and_none_is_the_shortest():
    assert accepted(by_hand(CLAIMS | {"exp": NOW_S + 300}))
    assert accepted(by_hand(CLAIMS | {"exp": NOW_S}))
    assert "more than 300 s" in refused(by_hand(CLAIMS | {"exp": NOW_S + 301}))
    assert "less than none" in refused(by_hand(CLAIMS | {"exp": NOW_S - 1}))
    refused(by_hand(CLAIMS | {"exp": 10**300}))
    refused(by_hand(CLAIMS | {"iat": -(10**300)}))


# --- what time it is ---------------------------------------------------------------------------


@pytest.mark.parametrize("off_ms", [-60_000, 0, 60_000, 120_000])
def test_clocks_may_be_a_minute_apart(off_ms: int):
    assert accepted(by_hand(CLAIMS), NOW_S * 1000 + off_ms)


@pytest.mark.parametrize("off_ms", [-(10**12), -60_001, 120_001, 10**12])
def test_clocks_that_are_further_apart_are_named_with_the_servers_time(off_ms: int):
    now_ms = NOW_S * 1000 + off_ms
    with pytest.raises(ClockSkewed) as skewed:
        read(by_hand(CLAIMS), PUBLIC_KEY, Purpose.TOKEN, WORKER, SERVER, now_ms)
    assert skewed.value.server_ms == now_ms
    assert str(NOW_S) in skewed.value.detail


def test_nobody_is_told_the_time_for_what_its_key_has_not_signed():
    refused(by_hand(CLAIMS, key=OTHER_KEY), NOW_S * 1000 + 10**9)
    refused(by_hand(CLAIMS | {"aud": "fedcba9876543210"}), NOW_S * 1000 + 10**9)
