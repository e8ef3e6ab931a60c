# SPDX-License-Identifier: Apache-2.0
"""The wire format's document says what the code does."""

import base64
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from protocol import assertions, header, messages
from protocol.algorithms import ALGORITHMS
from protocol.assertions import Purpose
from protocol.codec import (
    ALIGNMENT,
    MAX_TENSOR_BYTES,
    MEDIA_TYPE,
    NamedTensor,
    decode_message,
    encode_message,
)
from protocol.encodings import ENCODINGS
from protocol.errors import every_error
from protocol.join_token import JoinToken

DOCUMENT = (Path(__file__).parents[2] / "docs" / "reference" / "wire-format.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """(words after the language, text) of every fenced block."""
    return re.findall(rf"^```{language}(?: (\w+))?\n(.*?)^```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)


def hex_example() -> bytes:
    [(_, text)] = blocks("hexdump")
    return bytes.fromhex("".join(line[6:54] for line in text.splitlines()))


def test_its_writer_and_reader_agree_with_ours() -> None:
    [(_, code)] = blocks("python")
    theirs: dict[str, object] = {}
    exec(compile(code, "wire-format.md", "exec"), theirs)  # noqa: S102 - our own document
    write, read = theirs["write"], theirs["read"]
    assert callable(write)
    assert callable(read)
    weight, bias, empty = (
        np.arange(6, dtype="<f4").reshape(2, 3),
        np.full(300, 0.5, "<f4"),
        np.zeros(0, "<f4"),
    )
    arrays = {"fc.weight": weight, "fc.bias": bias, "empty": empty}
    written = write(
        "update", [("delta", name, values.shape, values.tobytes()) for name, values in arrays.items()]
    )
    ours = b"".join(
        encode_message("update", [NamedTensor("delta", name, values) for name, values in arrays.items()])
    )
    assert written == ours
    assert read(ours) == {
        ("delta", name): (values.shape, values.tobytes()) for name, values in arrays.items()
    }


def test_its_code_is_as_short_as_it_says() -> None:
    [(_, code)] = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_its_hex_example_is_what_we_write() -> None:
    message = hex_example()
    tensors = [
        NamedTensor("params", "w", np.array([[1.0, -2.0]], np.float32)),
        NamedTensor("params", "b", np.array(0.5, np.float32)),
    ]
    assert message == b"".join(encode_message("state", tensors))
    assert decode_message(message)["params"]["w"].tolist() == [[1.0, -2.0]]


def test_its_digests_are_those_of_the_hex_example() -> None:
    sha256 = hashlib.sha256(hex_example())
    assert sha256.hexdigest() in DOCUMENT
    assert f"Repr-Digest: sha-256=:{base64.b64encode(sha256.digest()).decode()}:" in DOCUMENT


@pytest.mark.parametrize(("name", "text"), blocks("json"))
def test_its_json_examples_are_messages_that_hide_no_field(name: str, text: str) -> None:
    message: type[BaseModel] = getattr(messages, name)
    parsed = messages.parse(message, text)
    assert parsed.model_fields_set == set(message.model_fields)


def test_what_it_shows_as_signed_is_signed_as_it_says() -> None:
    shown = {name: messages.parse(getattr(messages, name), text) for name, text in blocks("json")}
    enrolment, token, rotation = shown["Enrolment"], shown["AccessTokenRequest"], shown["KeyRotation"]
    assert isinstance(enrolment, messages.Enrolment)
    assert isinstance(token, messages.AccessTokenRequest)
    assert isinstance(rotation, messages.KeyRotation)
    [join_token] = re.findall(r"^    (fsj_.*)$", DOCUMENT, flags=re.MULTILINE)
    [signed_s] = map(int, re.findall(r"^at (\d+), for the join token$", DOCUMENT, flags=re.MULTILINE))
    join, key, now_ms = JoinToken.parse(join_token), enrolment.public_key, signed_s * 1000
    assert key == assertions.public_key_of(base64.urlsafe_b64encode(bytes(range(32))).rstrip(b"=").decode())
    for assertion, by, purpose, subject, use in (
        (enrolment.proof, key, Purpose.ENROL, assertions.thumbprint(key), assertions.use_of(join.secret)),
        (token.assertion, key, Purpose.TOKEN, "w-7f3a", None),
        (rotation.proof, rotation.public_key, Purpose.ROTATE, "w-7f3a", None),
        (rotation.consent, key, Purpose.ROTATE, "w-7f3a", assertions.thumbprint(rotation.public_key)),
    ):
        assertions.read(assertion, by, purpose, subject, join.server_id, now_ms, use)
        assert f"`{purpose.value}`" in DOCUMENT


def test_it_says_how_long_an_assertion_may_be_good_for() -> None:
    assert f"MUST be 0 to {assertions.LONGEST_S}; a worker SHOULD take {assertions.LIFETIME_S}" in DOCUMENT
    assert f"from {assertions.LEEWAY_S} s before `iat` to {assertions.LEEWAY_S} s\nafter `exp`" in DOCUMENT
    assert f"a string of 16 to {assertions.MAX_ID} characters" in DOCUMENT
    assert f"| `alg` | `{assertions.ALGORITHM}`" in DOCUMENT


def test_it_shows_the_whole_life_of_a_worker() -> None:
    assert [name for name, _ in blocks("json")] == [
        "Enrolment",
        "Enrolled",
        "AccessTokenRequest",
        "AccessToken",
        "KeyRotation",
        "Assignment",
        "UpdateHeader",
        "UploadOffer",
        "Receipt",
        "Receipt",
        "Decline",
        "Heartbeat",
        "Problem",
        "EvaluationAssignment",
        "MetricsReport",
    ]


def test_it_names_every_limit() -> None:
    for limit in (
        header.DEFAULT_LIMITS.header_bytes,
        header.DEFAULT_LIMITS.message_bytes,
        header.ENTRY_BYTES,
        header.MAX_TENSORS,
        header.MAX_DIMENSIONS,
        MAX_TENSOR_BYTES,
        ALIGNMENT,
    ):
        assert re.search(rf"\b{limit:,}\b", DOCUMENT), limit
    assert MEDIA_TYPE in DOCUMENT


def test_it_names_every_encoding_optimizer_setting_and_bundle() -> None:
    words = set(ENCODINGS)
    for row in ALGORITHMS.values():
        words |= {row.optimizer, *row.combiners, *row.state_bundles}
        words |= set(row.parse({}).optimizer_settings(10))
    assert [word for word in sorted(words) if f"`{word}`" not in DOCUMENT] == []


def test_the_problem_codes_it_names_exist() -> None:
    codes = {error.code for error in every_error()}
    [(_, table)] = re.findall(r"(^## Problem codes\n)(.*?)(?=^## )", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^\| `([a-z-]+)`", table, flags=re.MULTILINE))
    assert len(named) >= 15
    assert named <= codes
