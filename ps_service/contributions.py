# SPDX-License-Identifier: Apache-2.0
"""Which updates a closed round combines, bundle by bundle.

Deltas are those of the round. A bundle that is combined only every so many versions (`hessian`) comes, in a
synchronous run, with all the updates of the round that is to combine it. In an asynchronous run each worker
sends it in a turn of its own: what arrived since the last time is combined together, once, and of each worker
its newest, so that the fast have no more say. A few that could not be trimmed are left out.
"""

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.algorithms import algorithm_named
from protocol.messages import RunSpec
from ps_service.aggregation import AdmittedUpdate
from ps_service.round_machine import Round
from ps_service.storage import update_records, version_records
from ps_service.storage.run_records import StoredRun

FEWEST_OF_A_BUNDLE = 3
"""Where updates bring a bundle now and then, of so many workers at least: a trimmed mean needs three rows."""


async def contributions(
    connection: AsyncConnection, run: StoredRun, round_: Round
) -> dict[str, list[AdmittedUpdate]]:
    """{bundle: the updates whose tensors this round combines, in the order in which they are summed}."""
    base_version = round_.base_version
    updates = await update_records.updates_of_round(connection, run.run_id, round_.number)
    bringing = {"delta": updates}
    for bundle, first in windows(run.spec, base_version).items():
        earlier = await update_records.updates_in_versions(connection, run.run_id, first, base_version)
        newest = {each.slot: each for each in [*earlier, *updates] if bundle in each.header.bundles}
        if len(newest) >= fewest(round_):
            bringing[bundle] = [newest[slot] for slot in sorted(newest)]
    versions = {update.version for of_bundle in bringing.values() for update in of_bundle}
    tensors = {
        version: await version_records.tensors_of(connection, run.run_id, version) for version in versions
    }
    return {
        bundle: [
            AdmittedUpdate(
                digest=each.digest,
                header=each.header,
                params=tensors[each.version]["params"],
                slot=each.slot,
                staleness=base_version - each.version,
            )
            for each in of_bundle
        ]
        for bundle, of_bundle in bringing.items()
    }


async def digests_still_needed(connection: AsyncConnection, run: StoredRun) -> set[str]:
    """Of counted updates that bring a bundle which is yet to be combined."""
    if run.spec.asynchronous is None or run.state.status.ended:
        return set()
    version, needed = run.state.version, set()
    for bundle, period in _periods(run.spec).items():
        first = windows(run.spec, version + -version % period)[bundle]
        for update in await update_records.updates_in_versions(connection, run.run_id, first, version):
            if bundle in update.header.bundles:
                needed.add(update.digest)
    return needed


def windows(spec: RunSpec, base_version: int) -> dict[str, int]:
    """{bundle: the first version whose updates bring it}, of those but `delta` that are combined next."""
    return {
        bundle: base_version + (1 if spec.asynchronous is None else 2 - period)
        for bundle, period in _periods(spec).items()
        if base_version % period == 0
    }


def fewest(round_: Round) -> int:
    """How many workers must bring a bundle for it to be combined."""
    return 1 if round_.concurrency is None else min(round_.concurrency, FEWEST_OF_A_BUNDLE)


def _periods(spec: RunSpec) -> dict[str, int]:
    periods = algorithm_named(spec.algorithm).parse(spec.hyperparameters).periods()
    return {bundle: period for bundle, period in periods.items() if bundle != "delta"}
