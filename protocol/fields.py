# SPDX-License-Identifier: Apache-2.0
"""What the fields of messages are made of: strict numbers, names, and the two kinds of message."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Strict: JSON's `true`, `"3"` and `3.0` are no integers here, so that one spec has one way to be said.
Int = Annotated[int, Field(strict=True)]
Count = Annotated[Int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
SchemaVersion = Annotated[Int, Field(ge=1, le=1)]
"""The one version of each message there is so far."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Label = Annotated[str, Field(min_length=1, max_length=128)]
OneLine = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^\PC+$")]
"""Without control characters, of which PostgreSQL takes no zero and a terminal takes many for commands."""
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
"""One of a few choices."""
Seed = Annotated[Int, Field(ge=0, lt=2**63)]
MetricName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Metrics = dict[MetricName, Finite]
PerBundle = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=64)]], Field(max_length=16)
]
"""{bundle: a name}."""


class Said(BaseModel):
    """What a caller sends: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answered(BaseModel):
    """What the server answers: unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
