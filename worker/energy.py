# SPDX-License-Identifier: Apache-2.0
"""Joules, where the hardware counts them: NVIDIA devices through NVML, processors through Linux's powercap.

Both are counters of a whole device or processor package: whatever else runs there meanwhile is counted too.
Where neither can be read, as in most virtual machines, nothing is known, and nothing is guessed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_MICROJOULES = 1e-6
_MILLIJOULES = 1e-3


@dataclass(frozen=True)
class Counter:
    """Something that counts energy from a moment of its own on."""

    read_joules: Callable[[], float]
    """Raises: OSError, ValueError: it cannot be read any more."""
    wraps_at_joules: float | None = None
    """Where it begins anew; None if it does not."""

    def since(self, before: float) -> float:
        """Joules since it stood at `before`; right if it has begun anew once at most."""
        spent = self.read_joules() - before
        return spent + self.wraps_at_joules if spent < 0 and self.wraps_at_joules else spent


class EnergyMeter:
    """What the counters have counted between its making and now."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        try:
            self._begun = [(counter, counter.read_joules()) for counter in counters]
        except (OSError, ValueError):  # it was there when they were looked for
            self._begun = []

    def joules(self) -> float | None:
        """The sum over all of them; None if there are none, or one cannot be read any more."""
        if not self._begun:
            return None
        try:
            return sum(counter.since(before) for counter, before in self._begun)
        except (OSError, ValueError):
            return None


def counters_for(nvidia_uuid: str | None, powercap: Path = POWERCAP) -> Sequence[Counter]:
    """Those of an NVIDIA device, or with None of the processor; empty where none can be read.

    Args: nvidia_uuid: `GPU-…`; its number would not do, since a process may see only some of the devices.
    """
    return _processor_counters(powercap) if nvidia_uuid is None else _nvidia_counters(nvidia_uuid)


def _processor_counters(powercap: Path) -> list[Counter]:
    """One for each processor package."""
    counters = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:  # a part of a package, counted with it
            continue
        try:
            # psys: the packages and all around them
            if not (zone / "name").read_text().startswith("package"):
                continue
            wraps_at = float((zone / "max_energy_range_uj").read_text()) * _MICROJOULES
            counter = Counter(lambda zone=zone: _microjoules(zone), wraps_at)  # type: ignore[misc]
            counter.read_joules()
        except (OSError, ValueError):  # only root may read it, or it is no such counter
            continue
        counters.append(counter)
    return counters


def _microjoules(zone: Path) -> float:
    return float((zone / "energy_uj").read_text()) * _MICROJOULES


@cache
def _nvidia_counters(uuid: str) -> tuple[Counter, ...]:
    """Looked for once in a process: the library is initialised for it, and stays so."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return ()
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # no such device, or one that does not count
        return ()

    def read_joules() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * _MILLIJOULES
        except pynvml.NVMLError as error:  # the device is lost
            raise OSError(f"NVML: {error}") from None

    return (Counter(read_joules),)
