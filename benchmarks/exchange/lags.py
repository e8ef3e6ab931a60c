# SPDX-License-Identifier: Apache-2.0
"""How often a server's event loop was late, from what the server itself measures."""

from dataclasses import dataclass
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

NAME = "fed_sophia_loop_lag_seconds"


@dataclass(frozen=True)
class Lags:
    """Looks at how late the loop was."""

    seen: int
    over_20ms: int

    def __sub__(self, earlier: Self) -> "Lags":
        return Lags(self.seen - earlier.seen, self.over_20ms - earlier.over_20ms)


def lags_in(exposition: str) -> Lags:
    """Count the looks, and the late ones, in the text of `/metrics`."""
    family = next(each for each in text_string_to_metric_families(exposition) if each.name == NAME)
    counts = {sample.labels.get("le", sample.name): int(sample.value) for sample in family.samples}
    seen = counts[f"{NAME}_count"]
    return Lags(seen, seen - counts["0.02"])
