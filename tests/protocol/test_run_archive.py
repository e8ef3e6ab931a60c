# SPDX-License-Identifier: Apache-2.0
"""What an archive says of a run fits together, or is refused with the place where it does not."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.errors import InvalidMessage
from protocol.messages import parse
from protocol.run_archive import RunArchive, read_document

GOLDEN = Path(__file__).parents[1] / "golden" / "run-archive.json"
Document = dict[str, object]
Change = Callable[[dict], object]


def archived(change: Change = lambda document: None) -> Document:
    """The golden document, changed."""
    document: Document = json.loads(GOLDEN.read_text(encoding="utf-8"))
    change(document)
    return document


def a_committed_round(number: int) -> Document:
    first: Document = archived()["rounds"][0]
    return first | {"round": number, "base_version": number - 1, "version": number}


def a_version(number: int) -> Document:
    return archived()["versions"][1] | {"version": number}


def finished(document: dict) -> None:
    document |= {"status": "finished", "reason": "max_duration_s (9) has passed", "ended_ms": 1763938700000}


# what is changed -> what the refusal says
IMPOSSIBLE: dict[str, tuple[Change, str]] = {
    "an unknown field": (lambda d: d.update(members=[]), "members"),
    "another format": (lambda d: d.update(schema_version=2), "schema_version"),
    "no spec": (lambda d: d.pop("spec"), "spec"),
    "an impossible spec": (lambda d: d["spec"].update(quorum=3), "quorum 3"),
    "an unknown field in the spec": (lambda d: d["spec"].update(surprise=1), "surprise"),
    "a round that is open": (lambda d: d["rounds"][1].update(status="collecting"), "has ended"),
    "a round that is missing": (lambda d: d["rounds"].pop(0), "expected round 1, got round 2"),
    "a round twice": (lambda d: d["rounds"].append(d["rounds"][1]), "expected round 3, got round 2"),
    "rounds in another order": (lambda d: d["rounds"].reverse(), "expected round 1"),
    "a round on a version there was not": (
        lambda d: d["rounds"][1].update(base_version=0),
        "base_version 1, got 0",
    ),
    "a round that skipped a version": (lambda d: d["rounds"][0].update(version=2), "expected version 1"),
    "a committed round without a version": (lambda d: d["rounds"][0].update(version=None), "version 1"),
    "an abandoned round with a version": (
        lambda d: d["rounds"][1].update(version=2),
        "expected version None",
    ),
    "an abandoned round without a reason": (lambda d: d["rounds"][1].update(reason=None), "no reason"),
    "a metric that is no number": (lambda d: d["rounds"][0]["metrics"].update(loss="low"), "loss"),
    "a negative count": (lambda d: d["rounds"][0].update(admitted=-1), "admitted"),
    "a number as text": (lambda d: d["rounds"][0].update(round="1"), "round"),
    "no versions": (lambda d: d.update(versions=[]), "versions"),
    "a version that no round made": (lambda d: d["versions"].append(a_version(2)), "made version 1"),
    "a version that is missing": (lambda d: d["versions"].pop(), "made version 1"),
    "versions in another order": (lambda d: d["versions"].reverse(), "expected version 0, got version 1"),
    "a version without params": (lambda d: d["versions"][1]["tensors"].pop("params"), "version 1: has no"),
    "a bundle that the algorithm does not keep": (
        lambda d: d["versions"][1]["tensors"].update(control="5" * 64),
        "keeps no bundle 'control'",
    ),
    "a digest that is none": (lambda d: d["versions"][1]["tensors"].update(params="../x"), "params"),
    "other first params than the spec's": (
        lambda d: d["versions"][0]["tensors"].update(params="9" * 64),
        "version 0",
    ),
    "a version included that is not there": (lambda d: d.update(included=[2]), "included"),
    "a version included twice": (lambda d: d.update(included=[1, 1]), "included"),
    "versions included in another order": (lambda d: d.update(included=[1, 0]), "included"),
    "more versions than the spec asks for": (lambda d: d["spec"].update(rounds=1, cohort_size=2), "end"),
    "an end before the end": (lambda d: d.update(ended_ms=1), "ended_ms"),
    "an end without its time": (lambda d: d.update(status="cancelled"), "ended_ms"),
    "a reason without an end": (lambda d: d.update(reason="so"), "reason"),
    "a run that goes on after its last abandoned round": (
        lambda d: d["spec"].update(max_abandoned_rounds=1),
        "to its end",
    ),
}


def test_what_fits_together_is_read() -> None:
    archive = parse(RunArchive, archived())
    assert (archive.version, archive.abandoned_in_a_row) == (1, 1)
    assert parse(RunArchive, archived(finished)).status.ended


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_no_run_can_be_is_refused_with_its_place(what: str) -> None:
    change, says = IMPOSSIBLE[what]
    with pytest.raises(InvalidMessage) as refused:
        parse(RunArchive, json.dumps(archived(change)))
    assert says in refused.value.detail


def test_a_run_that_ended_may_have_made_as_many_versions_as_asked_for_and_none_more() -> None:
    def with_versions(count: int) -> Document:
        document = archived(finished)
        document["rounds"] = [a_committed_round(number) for number in range(1, count + 1)]
        document["versions"] = [archived()["versions"][0], *(a_version(n) for n in range(1, count + 1))]
        return document

    assert parse(RunArchive, with_versions(4)).version == 4
    with pytest.raises(InvalidMessage, match="the spec asks for 4"):
        parse(RunArchive, with_versions(5))


def test_a_run_that_never_held_a_round_is_a_run_too() -> None:
    def not_begun(document: dict) -> None:
        document |= {"status": "waiting", "rounds": [], "versions": document["versions"][:1], "included": [0]}

    archive = parse(RunArchive, archived(not_begun))
    assert (archive.version, archive.abandoned_in_a_row) == (0, 0)


def test_what_only_the_server_step_keeps_is_archived_with_the_rest() -> None:
    def by_fedadam(document: dict) -> None:
        document["spec"] |= {"algorithm": "fedadam", "hyperparameters": {}, "combiners": {}, "encodings": {}}
        for version in document["versions"]:
            version["tensors"] = {"params": version["tensors"]["params"]}
        document["versions"][1]["tensors"] |= {"momentum": "5" * 64, "second_moment": "6" * 64}

    assert {"5" * 64, "6" * 64} < set(parse(RunArchive, archived(by_fedadam)).digests_of([1]))


def test_a_tensor_that_two_versions_share_is_named_once_with_the_first() -> None:
    def sharing(document: dict) -> None:
        document["versions"][1]["tensors"]["params"] = "1" * 64

    archive = parse(RunArchive, archived(sharing))
    assert archive.digests_of((0, 1)) == {"1" * 64: 0, "3" * 64: 1, "4" * 64: 1}
    assert archive.digests_of((1,)) == {"1" * 64: 1, "3" * 64: 1, "4" * 64: 1}


def peak_bytes(text: bytes) -> tuple[int, str]:
    """Of Python's own memory while `text` is refused, and what the refusal says."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage) as refusal:
            read_document(text)
        return tracemalloc.get_traced_memory()[1], refusal.value.detail
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("field", ["rounds", "versions"])
def test_of_very_many_wrong_rounds_the_first_alone_is_looked_at(field: str) -> None:
    text = json.dumps(archived(lambda document: document.update({field: [{}] * 20_000}))).encode()
    peak, says = peak_bytes(text)
    assert f"RunArchive.{field}.0" in says
    assert peak < 100 * len(text)


def test_an_object_with_very_many_fields_is_refused_before_each_is_an_error() -> None:
    unknown = {f"field_{number}": 0 for number in range(20_000)}
    text = json.dumps(archived(lambda document: document["spec"].update(unknown))).encode()
    peak, says = peak_bytes(text)
    assert "fields; at most 1000 are read" in says
    assert peak < 100 * len(text)
