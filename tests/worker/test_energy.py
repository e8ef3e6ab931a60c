# SPDX-License-Identifier: Apache-2.0
"""Energy counters, as Linux shows them below /sys/class/powercap."""

from pathlib import Path

import pytest

from worker.energy import EnergyMeter, counters_for


def a_zone(
    powercap: Path, folder: str, energy_uj: int, wraps_at_uj: int = 10_000_000, name: str = "package-0"
) -> Path:
    zone = powercap / folder
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text(f"{wraps_at_uj}\n")
    return zone


def test_the_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    packages = [a_zone(tmp_path, f"intel-rapl:{number}", 1_000_000) for number in range(2)]
    part = a_zone(tmp_path, "intel-rapl:0:0", 1_000_000)
    meter = EnergyMeter(counters_for(None, tmp_path))
    for zone, energy_uj in zip([*packages, part], (3_500_000, 1_250_000, 9_000_000), strict=True):
        (zone / "energy_uj").write_text(f"{energy_uj}\n")
    assert meter.joules() == pytest.approx(2.5 + 0.25)


def test_what_a_whole_computer_takes_is_not_added_to_what_its_packages_take(tmp_path: Path) -> None:
    zones = [a_zone(tmp_path, "intel-rapl:0", 0), a_zone(tmp_path, "intel-rapl:1", 0, name="psys")]
    meter = EnergyMeter(counters_for(None, tmp_path))
    for zone in zones:
        (zone / "energy_uj").write_text("2000000\n")
    assert meter.joules() == pytest.approx(2.0)


def test_a_counter_that_began_anew_is_read_right(tmp_path: Path) -> None:
    zone = a_zone(tmp_path, "intel-rapl:0", 9_000_000)
    meter = EnergyMeter(counters_for(None, tmp_path))
    (zone / "energy_uj").write_text("500000\n")
    assert meter.joules() == pytest.approx(1.5)


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    zone = a_zone(tmp_path, "intel-rapl:0", 1)
    (zone / "energy_uj").write_text("no number")
    assert EnergyMeter(counters_for(None, tmp_path)).joules() is None
    assert EnergyMeter(counters_for(None, tmp_path / "absent")).joules() is None
    assert EnergyMeter(counters_for("GPU-00000000-0000-0000-0000-000000000000", tmp_path)).joules() is None
