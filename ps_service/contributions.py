# SPDX-License-Identifier: Apache-2.0
"""Which updates a closed round combines, bundle by bundle.

In a synchronous run all updates of a round were made from one version, and all carry what was wanted of it.

In an asynchronous run deltas are those of the round. A bundle that is combined only every so many versions
(`hessian`) comes from each worker in a turn of its own: what arrived since the last time is combined
together, once, and of each worker its newest, so that the fast have no more say. Of so few that none could
be told to be wild, none are combined.
"""

from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.algorithms import algorithm_named
from protocol.messages import RunSpec
from ps_service.aggregation import AdmittedUpdate
from ps_service.assigning import started_from
from ps_service.round_machine import Round
from ps_service.storage import update_records, version_records
from ps_service.storage.run_records import StoredRun

FEWEST_OF_A_BUNDLE = 3
"""Where updates bring a bundle now and then, of so many workers at least: fewer tell none of them wild."""


async def contributions(
    connection: AsyncConnection, run: StoredRun, round_: Round
) -> dict[str, list[AdmittedUpdate]]:
    """{bundle: the updates whose tensors this round combines, in the order in which they are summed}."""
    base_version = round_.base_version
    updates = await update_records.updates_of_round(connection, run.run_id, round_.number)
    bringing = dict.fromkeys(_of_the_round(run.spec, base_version), updates)
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
                params=started_from(tensors[each.version]),
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
    for bundle, period in _in_turns(run.spec).items():
        first = windows(run.spec, version + -version % period)[bundle]
        for update in await update_records.updates_in_versions(connection, run.run_id, first, version):
            if bundle in update.header.bundles:
                needed.add(update.digest)
    return needed


def windows(spec: RunSpec, base_version: int) -> dict[str, int]:
    """{bundle: the first version whose updates bring it}, of those in turns that are combined next."""
    return {
        bundle: base_version + 2 - period
        for bundle, period in _in_turns(spec).items()
        if base_version % period == 0
    }


def fewest(round_: Round) -> int:
    """How many workers must bring a bundle that comes in turns for it to be combined."""
    assert round_.concurrency is not None
    return min(round_.concurrency, FEWEST_OF_A_BUNDLE)


def _of_the_round(spec: RunSpec, base_version: int) -> tuple[str, ...]:
    """The bundles that are combined of the round's own updates, all of which carry them."""
    if spec.asynchronous is not None:
        return ("delta",)
    return algorithm_named(spec.algorithm).parse(spec.hyperparameters).bundles_wanted(base_version)


def _in_turns(spec: RunSpec) -> dict[str, int]:
    """{bundle: its period} of those that workers send in turns of their own."""
    if spec.asynchronous is None:
        return {}
    periods = algorithm_named(spec.algorithm).parse(spec.hyperparameters).periods()
    return {bundle: period for bundle, period in periods.items() if bundle != "delta"}
