# SPDX-License-Identifier: Apache-2.0
"""Which versions keep their tensors. PURE."""

from collections.abc import Iterable, Mapping

from protocol.messages import BestVersions, Retention


def kept_versions(
    retention: Retention, versions: Iterable[int], metrics: Mapping[int, Mapping[str, float]]
) -> set[int]:
    """Those of a run's versions that keep their tensors.

    Args:
        versions: that have them now; the newest of these is the current version.
        metrics: {version: {metric: value}}, of those that were measured.
    """
    ascending = sorted(versions)
    kept = set(ascending[-retention.last :])
    if retention.every is not None:
        kept |= {version for version in ascending if version % retention.every == 0}
    if retention.best is not None:
        kept |= _best(retention.best, ascending, metrics)
    return kept


def _best(best: BestVersions, versions: list[int], metrics: Mapping[int, Mapping[str, float]]) -> set[int]:
    """Of equal values the newest is the better one."""
    measured = [version for version in versions if best.metric in metrics.get(version, {})]
    sign = 1.0 if best.order == "highest" else -1.0
    measured.sort(key=lambda version: (sign * metrics[version][best.metric], version))
    return set(measured[-best.count :])
