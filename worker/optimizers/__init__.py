# SPDX-License-Identifier: Apache-2.0
"""Menu: optimizers, the worker half of an algorithm. To add one, copy `sgd.py` and add a line below."""

from protocol.errors import InvalidMessage
from worker.optimizers import done
from worker.optimizers.adamw import AdamW
from worker.optimizers.base import BeginRound
from worker.optimizers.guided import Guided
from worker.optimizers.lion import Lion
from worker.optimizers.measured import Measured
from worker.optimizers.proximal import Proximal
from worker.optimizers.scaffold import Scaffold
from worker.optimizers.sgd import Sgd
from worker.optimizers.sophia import Sophia, SophiaShared

OPTIMIZERS: dict[str, BeginRound] = {
    "adamw": AdamW.begin,
    "done": done.begin,
    "guided": Guided.begin,
    "lion": Lion.begin,
    "measured": Measured.begin,
    "proximal": Proximal.begin,
    "scaffold": Scaffold.begin,
    "sgd": Sgd.begin,
    "sophia": Sophia.begin,
    "sophia_shared": SophiaShared.begin,
}


def optimizer_named(name: str) -> BeginRound:
    """Give the optimizer with this name.

    Raises:
        InvalidMessage: there is none.
    """
    try:
        return OPTIMIZERS[name]
    except KeyError:
        raise InvalidMessage(f"optimizer {name!r}: this worker has {', '.join(OPTIMIZERS)}") from None
