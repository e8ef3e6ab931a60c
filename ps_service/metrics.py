# SPDX-License-Identifier: Apache-2.0
"""Every metric: name, unit, labels, one sentence. Each has its heading in `docs/reference/metrics.md`."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Meters:
    """The metrics of one server process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rounds = Counter(
            "fed_sophia_rounds",
            "Rounds that ended.",
            ["status"],
            registry=self.registry,
        )
        self.round_seconds = Histogram(
            "fed_sophia_round_seconds",
            "Time from the opening of a round to its end, in seconds.",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000),
            registry=self.registry,
        )
        self.aggregation_seconds = Histogram(
            "fed_sophia_aggregation_seconds",
            "Time to combine the updates of a round, in seconds.",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.registry,
        )
        self.staleness = Histogram(
            "fed_sophia_staleness_versions",
            "Versions made since the one that a counted update of an asynchronous run was made from.",
            buckets=(0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 1_000),
            registry=self.registry,
        )
        self.updates = Counter(
            "fed_sophia_updates",
            "Updates received in full, each counted once.",
            registry=self.registry,
        )
        self.refusals = Counter(
            "fed_sophia_refusals",
            "Requests answered with a problem.",
            ["code"],
            registry=self.registry,
        )
        self.received_bytes = Counter(
            "fed_sophia_received_bytes",
            "Bytes of tensor messages received, refused ones included.",
            registry=self.registry,
        )
        self.sent_bytes = Counter(
            "fed_sophia_sent_bytes",
            "Bytes of tensor messages sent.",
            registry=self.registry,
        )
        self.waiting = Gauge(
            "fed_sophia_waiting_requests",
            "Requests that wait for an assignment now.",
            registry=self.registry,
        )
        self.loop_lag_seconds = Histogram(
            "fed_sophia_loop_lag_seconds",
            "How late the event loop came to what was due, in seconds.",
            buckets=(0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )

    def names(self) -> list[str]:
        """The names under which the metrics are exposed, without histogram and counter suffixes."""
        return sorted(family.name for family in self.registry.collect())

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
