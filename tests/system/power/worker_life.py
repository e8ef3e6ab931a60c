# SPDX-License-Identifier: Apache-2.0
"""The life of one worker's disk: three assignments, of which the server counts two and refuses the last.

What an update keeps for the next round is a function of the step that was kept before, ten steps an update.
So one number says whether anything was lost, torn, mixed or done twice: the step kept is ten times the number
of receipts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocol.codec import NamedTensor, digest_of, encode_message
from protocol.messages import UpdateHeader
from tests.system.power.lives import Witness
from worker.identity import Identity, identity_in, save_identity
from worker.local_state import Kept, LocalState
from worker.outbox import Entry, Outbox

RUN = "run-1"
COUNTED = (1, 2)
REFUSED = 3
STEPS = 10
SERVER = "https://fed.example"
IDENTITY = Identity(server_url=SERVER)


@dataclass(frozen=True)
class Assured:
    """What the worker may rely on, and what it has begun."""

    known: bool = False
    """The key may have been used."""
    put: int = 0
    """So many counted updates have been put: they are in the outbox or in the local state."""
    settling: int = 0
    """So many receipts have come; the new local state of the last may be there already."""
    settled: int = 0
    """So many have been settled: their local state is there."""
    refused_put: bool = False
    refused_dropping: bool = False
    forgetting: bool = False


def kept_after(updates: int) -> Kept | None:
    """What there is to keep when so many updates have been counted."""
    if updates == 0:
        return None
    step = updates * STEPS
    return Kept(step, {"momentum": {"w": np.arange(300, dtype=np.float32) + step}})


def message_of(number: int) -> Sequence[memoryview]:
    values = np.arange(1000, dtype=np.float32) + number
    return encode_message("update", [NamedTensor("delta", "w", values)])


def entry_of(number: int) -> Entry:
    message = message_of(number)
    header = UpdateHeader(
        digest=digest_of(message),
        size_bytes=sum(buffer.nbytes for buffer in message),
        bundles=("delta",),
        encodings={"delta": "f32"},
        num_examples=5,
        local_steps=STEPS,
        metrics={},
    )
    return Entry(assignment_id=f"a-{number}", run_id=RUN, round=number, header=header)


def equal(left: Kept | None, right: Kept | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.step == right.step and np.array_equal(
        left.bundles["momentum"]["w"], right.bundles["momentum"]["w"]
    )


def life(root: Path, witness: Witness[Assured]) -> None:
    """What the agent does with its disk. Begun again after a kill, it goes on where it was."""
    with witness.doing("opening"):
        if (root / "identity.json").exists():
            identity_in(root, SERVER, witness.fsync)
        else:
            save_identity(root, IDENTITY, witness.fsync)
        witness.promise(known=True)
    with witness.doing("opening the outbox"):
        local_state = LocalState(root / "local_state", witness.fsync)
        outbox = Outbox(root / "outbox", local_state, witness.fsync)
        if not outbox.pending():  # whatever was being settled when the process was killed has been
            witness.promise(settled=witness.promised.settling)
    for number in (*COUNTED, REFUSED):
        if not outbox.pending() and not has_ended(number, witness.promised):
            train_and_put(outbox, local_state, number, witness)
        for pending in outbox.pending():
            deliver(outbox, pending.entry.round, witness)
    with witness.doing("forgetting the run"):
        witness.promise(forgetting=True)
        local_state.forget(RUN)


def has_ended(number: int, assured: Assured) -> bool:
    """Whether the server offers the next assignment."""
    return assured.refused_dropping if number == REFUSED else assured.settling >= number


def train_and_put(outbox: Outbox, local_state: LocalState, number: int, witness: Witness[Assured]) -> None:
    with witness.doing(f"putting a-{number}"):
        before = local_state.load(RUN)
        updates = 0 if before is None else before.step // STEPS
        outbox.put(entry_of(number), message_of(number), kept_after(updates + 1))


def deliver(outbox: Outbox, number: int, witness: Witness[Assured]) -> None:
    """Send what is there, hear what the server says, and do it."""
    if number == REFUSED:
        witness.promise(refused_put=True)
        with witness.doing(f"dropping a-{number}"):
            witness.promise(refused_dropping=True)
            outbox.drop(f"a-{number}")
        return
    witness.promise(put=number)
    with witness.doing(f"settling a-{number}"):
        witness.promise(settling=number)
        outbox.settle(f"a-{number}")
        witness.promise(settled=number)


def nothing_is_lost(root: Path, assured: Assured) -> None:
    """Open what was found; go on with it as the agent would; see that all is as if nothing had happened."""
    if assured.known:
        assert (root / "identity.json").exists(), "the key is there"
        assert identity_in(root, SERVER, no_sync) == IDENTITY
    local_state = LocalState(root / "local_state", no_sync)
    outbox = Outbox(root / "outbox", local_state, no_sync)
    may_be_kept = {assured.settled, assured.settling}
    pending = {found.entry.round: found for found in outbox.pending()}
    if assured.forgetting:
        may_be_kept.add(0)
    else:
        assert assured.put <= max([assured.settling, *(pending.keys() & set(COUNTED))]), "the update is there"
        assert not assured.refused_put or assured.refused_dropping or REFUSED in pending
    found_kept = state_found(root, local_state)
    assert found_kept in may_be_kept, f"state after {found_kept} updates, expected one of {may_be_kept}"
    for number, found in pending.items():
        assert found.message_path.read_bytes() == b"".join(message_of(number)), f"a-{number} is whole"
        if number > assured.settling and not assured.refused_dropping:
            waiting = LocalState(found.message_path.parent / "kept", no_sync).load(RUN)
            assert equal(waiting, kept_after(number)), f"what a-{number} keeps is whole"
        if number == REFUSED:
            outbox.drop(f"a-{number}")
        else:
            outbox.settle(f"a-{number}")
    if not assured.forgetting:
        received = max([assured.put, *(pending.keys() & set(COUNTED))])
        after = state_found(root, local_state)
        assert after == received, f"after all receipts: state after {after} updates, expected {received}"
    assert list((root / "outbox").iterdir()) == [], "nothing is left over"
    assert all("new" not in path.name for path in (root / "local_state").iterdir())


def state_found(root: Path, local_state: LocalState) -> int:
    """After how many updates the local state is; it is whole, and says the right round."""
    kept = local_state.load(RUN)
    if kept is None:
        return 0
    updates = kept.step // STEPS
    assert equal(kept, kept_after(updates)), "step and tensors belong together"
    assert json.loads((root / "local_state" / f"{RUN}.json").read_bytes())["round"] == updates
    return updates


def no_sync(_descriptor: int) -> None:
    """Nothing fails any more once the power is back."""
