# SPDX-License-Identifier: Apache-2.0
"""Reads the policies of a run's rounds as people type them."""

import re

from fed_sophia.options import duration_s
from protocol.errors import InvalidUsage
from protocol.messages import AdaptiveDeadline, TargetMetric, parse


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
