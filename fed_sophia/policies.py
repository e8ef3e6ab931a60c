# SPDX-License-Identifier: Apache-2.0
"""Reads the policies of a run's rounds as people type them."""

import re
from collections.abc import Sequence

from fed_sophia.options import duration_s
from protocol.errors import InvalidUsage
from protocol.messages import AdaptiveDeadline, AsynchronousRounds, Retention, TargetMetric, parse


def adaptive(text: str | None) -> AdaptiveDeadline | None:
    """Read `K:FLOOR:CEILING`, as in `4:10s:30m`.

    Raises:
        InvalidUsage, InvalidMessage: it is something else, or out of range.
    """
    if text is None:
        return None
    parts = text.split(":")
    if len(parts) != 3 or not re.fullmatch(r"\d+(\.\d+)?", parts[0]):
        raise InvalidUsage(f"--adaptive-deadline {text!r}: expected K:FLOOR:CEILING, like 4:10s:30m")
    floor_s, ceiling_s = (duration_s(part, "--adaptive-deadline") for part in parts[1:])
    return parse(AdaptiveDeadline, {"spread": float(parts[0]), "floor_s": floor_s, "ceiling_s": ceiling_s})


def asynchronous(text: str | None) -> AsynchronousRounds | None:
    """Read `yes`, or settings by name: `max-staleness=20,staleness-exponent=0.5,concurrency=64`.

    Raises:
        InvalidUsage, InvalidMessage: it is something else, or out of range.
    """
    if text is None:
        return None
    fields: dict[str, object] = {}
    for part in text.split(",") if text != "yes" else ():
        match = re.fullmatch(r"\s*([a-z-]+)=(\d+(?:\.\d+)?)\s*", part)
        name = match[1].replace("-", "_") if match else ""
        if match is None or name not in AsynchronousRounds.model_fields or name in fields:
            known = ", ".join(each.replace("_", "-") for each in AsynchronousRounds.model_fields)
            raise InvalidUsage(f"--asynchronous {text!r}: expected yes, or NAME=NUMBER,… of {known}")
        fields[name] = float(match[2]) if "." in match[2] else int(match[2])
    return parse(AsynchronousRounds, fields)


def target_metric(text: str | None) -> TargetMetric | None:
    """Read `METRIC>=VALUE` or `METRIC<=VALUE`.

    Raises:
        InvalidUsage, InvalidMessage: it is something else, or no metric's name.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*(-?\d+(?:\.\d+)?)\s*", text)
    if match is None:
        raise InvalidUsage(f"--target {text!r}: expected METRIC>=VALUE or METRIC<=VALUE")
    direction = "at_least" if match[2] == ">=" else "at_most"
    return parse(TargetMetric, {"name": match[1], direction: float(match[3])})


def retention(texts: Sequence[str]) -> Retention | None:
    """Read what is to be kept: `last=20`, `every=50`, `highest=METRIC`, `lowest=METRIC:3`, `updates=5`.

    Raises:
        InvalidUsage, InvalidMessage: one is something else, stands twice, or is out of range.
    """
    fields: dict[str, object] = {}
    for text in texts:
        name, field = _kept(text)
        if name in fields:
            raise InvalidUsage(f"--keep {text!r}: that is said twice")
        fields[name] = field
    return parse(Retention, fields) if fields else None


def _kept(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    if name in ("last", "every", "updates") and re.fullmatch(r"\d{1,9}", value):
        return {"updates": "update_rounds"}.get(name, name), int(value)
    best = re.fullmatch(r"(\w+)(?::(\d{1,9}))?", value)
    if name in ("highest", "lowest") and best is not None:
        return "best", {"metric": best[1], "order": name, "count": int(best[2] or 1)}
    raise InvalidUsage(
        f"--keep {text!r}: expected last=N, every=N, highest=METRIC[:N], lowest=METRIC[:N] or updates=ROUNDS"
    )
