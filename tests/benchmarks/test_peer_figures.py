# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of peers makes of what it has seen: no wrong aggregate, no first round."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.exchange.rounds import Plan as OurPlan
from benchmarks.peers.figures import Figures, Report, Round, figures, read_report
from benchmarks.peers.loopback import parse_received
from benchmarks.peers.metering import CpuTally, Sample, used
from benchmarks.peers.peer import Peer, Plan
from benchmarks.peers.procfs import Process, parse_stat
from benchmarks.peers.workload import largest_error, model, update
from benchmarks.round_cost import peer_row
from protocol.errors import Internal, InvalidUsage


def a_process(pid: int, cpu_s: float, parent: int = 1) -> Process:
    return Process(pid=pid, state="S", began_ticks=pid, parent=parent, cpu_s=cpu_s, rss_bytes=0)


def a_report(path: Path, **changed: object) -> Path:
    fields: dict[str, object] = {
        "version": "1.0",
        "rounds": [[10.0, 11.0, 2], [11.0, 13.0, 2]],
        "failures": [],
        "largest_error": 1e-6,
    }
    path.write_text(json.dumps(fields | changed), encoding="utf-8")
    return path


def some_samples() -> list[Sample]:
    """Every second from 10 to 14: 100 bytes, 1 s of the server, 2 s of the workers; memory in tens."""
    return [Sample(10.0 + n, 100 * n, 1.0 * n, 2.0 * n, 10 * n) for n in range(5)]


def test_after_all_rounds_the_weighted_mean_is_the_one_that_was_worked_out() -> None:
    arrays, workers, rounds = model(0.1), 3, 4
    for _ in range(rounds):
        sent = [update(arrays, index) for index in range(workers)]
        total = sum(weight for _, weight in sent)
        arrays = [
            sum(weight * each[place] for each, weight in sent) / np.float32(total)
            for place in range(len(arrays))
        ]
    assert largest_error(arrays, model(0.1), workers, rounds) < 1e-5


def test_one_wrong_element_is_an_error() -> None:
    arrays = update(model(0.1), 0)[0]
    arrays[7][0, 3] += 0.5
    assert largest_error(arrays, model(0.1), workers=1, rounds=1) == pytest.approx(0.5, abs=1e-5)


def test_an_array_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        largest_error(model(0.1)[1:], model(0.1), workers=1, rounds=1)


def test_a_model_is_twenty_arrays_of_the_size_that_was_asked_for() -> None:
    assert len(model(1)) == 20
    assert sum(array.nbytes for array in model(1)) == 1_000_000


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"rounds": [[10.0, 11.0, 2], [11.0, 13.0, 1]]}, "2 replies"),
        ({"rounds": [[10.0, 11.0, 2]]}, "2 replies"),
        ({"failures": ["out of memory"]}, "out of memory"),
        ({"largest_error": 0.01}, "wrong by"),
        ({"largest_error": float("nan")}, "wrong by"),
        ({"error": "KeyError: x"}, "KeyError: x"),
    ],
)
def test_a_report_of_anything_but_a_clean_run_is_refused(
    tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    with pytest.raises(Internal, match=words):
        read_report(a_report(tmp_path / "report.json", **changed), workers=2, rounds=2)


def test_what_a_round_costs_leaves_out_the_first() -> None:
    report = Report("1.0", (Round(10.0, 11.0, 2), Round(11.0, 13.0, 2)), 0.0)
    found = figures(report, some_samples(), began_s=4.0, network_is_private=True)
    assert found.round_seconds_each == [1.0, 2.0]
    assert found.lo_bytes_per_round == 200
    assert (found.server_cpu_s_per_round, found.workers_cpu_s_per_round) == (2.0, 4.0)
    assert found.server_peak_rss_bytes == 30, "what the check takes after the last round is no round's"
    assert found.start_seconds == 6.0


def test_bytes_are_not_told_where_others_share_the_network() -> None:
    report = Report("1.0", (Round(10.0, 11.0, 2),), 0.0)
    assert figures(report, some_samples(), 4.0, network_is_private=False).lo_bytes_per_round is None


def test_use_between_two_samples_grows_evenly() -> None:
    assert used(some_samples(), 10.5, 12.0).lo_bytes == pytest.approx(150)


def test_the_time_of_a_process_that_has_gone_is_kept() -> None:
    tally = CpuTally()
    assert tally.add([a_process(11, 5.0), a_process(12, 3.0)]) == 8.0
    assert tally.add([a_process(11, 6.0)]) == 9.0


def test_the_time_of_a_child_that_its_parent_has_waited_for_counts_once() -> None:
    tally = CpuTally()
    tally.add([a_process(11, 5.0), a_process(12, 3.0, parent=11)])
    assert tally.add([a_process(11, 8.5)]) == 8.5, "the parent's 5.5 s and the child's 3 s"


def test_a_command_named_to_mislead_does_not_shift_the_fields() -> None:
    behind = "S 7 1 1 0 -1 0 0 0 0 0 100 50 20 30 20 0 1 0 4242 999 12 0"
    process = parse_stat(f"33 (a) b) (c) {behind}", ticks_per_s=100, page_bytes=4096)
    assert (process.pid, process.parent, process.began_ticks) == (33, 7, 4242)
    assert process.cpu_s == 2.0
    assert process.rss_bytes == 12 * 4096


def test_only_the_loopback_device_is_counted() -> None:
    assert parse_received("Inter-|\n face |bytes\n  eth0: 7 1 0\n    lo:  123 4 0\n") == 123


def test_nothing_smaller_than_a_row_an_array_is_measured() -> None:
    with pytest.raises(InvalidUsage, match=r"0\.008"):
        Plan(mb=0.001, workers=2, rounds=3).check()


def test_a_peer_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    async def never(*_: object) -> None:
        raise AssertionError("it was started")

    peer = Peer("flower", tmp_path / "none", never, lambda _: {})
    with pytest.raises(InvalidUsage, match="make bench-peers"):
        peer.place(tmp_path)


def test_times_faster_compares_medians_without_the_first_rounds() -> None:
    theirs = Figures([90.0, 3.0, 5.0, 4.0], None, 0.1, 0.2, 1, 9.0, 0.0, "1.0")
    fields = peer_row("flower", OurPlan(1, 2, 4), [70.0, 0.5, 0.4, 0.6], theirs)
    assert (fields["round_seconds"], fields["times_faster"]) == (4.0, 8.0)
