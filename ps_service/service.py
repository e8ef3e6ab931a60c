# SPDX-License-Identifier: Apache-2.0
"""Everything the routes share, put together once by `create_app`."""

import asyncio
from dataclasses import dataclass, field

from protocol.errors import FedSophiaError
from ps_service import quarantine
from ps_service.audit import Audit
from ps_service.auth import Auth
from ps_service.bell import Bell
from ps_service.clock import Clock
from ps_service.enrolling import Enrolling
from ps_service.fellows import Fellows
from ps_service.housekeeping import Housekeeping
from ps_service.metrics import Meters
from ps_service.operator_keys import OperatorKeys
from ps_service.pace import Pace
from ps_service.pieces import Pieces
from ps_service.places import Places
from ps_service.presence import Presence
from ps_service.presigned import Presigned
from ps_service.rates import Rates
from ps_service.round_runner import RoundRunner
from ps_service.run_disk import RunDisk
from ps_service.settings import Settings
from ps_service.storage import Stores
from ps_service.tls import AdvertisedCa
from ps_service.uploads import Uploads
from ps_service.waiting_room import WaitingRoom


@dataclass(frozen=True)
class Service:
    """The parts of one server process."""

    settings: Settings
    stores: Stores
    clock: Clock
    bell: Bell
    meters: Meters
    ca: AdvertisedCa | None
    """By which workers are to trust this server; None leaves that to their system."""
    audit: Audit
    auth: Auth
    enrolling: Enrolling
    operator_keys: OperatorKeys
    runner: RoundRunner
    presence: Presence
    uploads: Uploads
    housekeeping: Housekeeping
    room: WaitingRoom
    pace: Pace
    uploading: Places
    waiting: Places
    rates: Rates
    disk: RunDisk
    fellows: Fellows
    presigned: Presigned
    pieces: Pieces = field(default_factory=Pieces)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process was asked to stop: whoever waits is sent home."""

    async def note_refusal(self, worker_id: str, assignment_id: str, error: FedSophiaError) -> None:
        """An update was not taken for what is in it."""
        most = self.settings.quarantine_after
        if await quarantine.note_refusal(self.runner, worker_id, assignment_id, error, most):
            self.note_quarantine(worker_id, error)

    def note_quarantine(self, worker_id: str, error: FedSophiaError) -> None:
        """A worker is in quarantine. Args: error: why its last update was not taken."""
        self.audit.note("server", "quarantine", {"worker_id": worker_id, "code": error.code})

    def stop_waiting(self) -> None:
        """Send waiting requests home, so that they do not hold up a stop."""
        self.stopping.set()
        self.pace.send_home()
        self.room.send_home()
        self.bell.ring_all()
