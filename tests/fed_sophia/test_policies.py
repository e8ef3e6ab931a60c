# SPDX-License-Identifier: Apache-2.0
"""Policies as people type them."""

import pytest

from fed_sophia.policies import adaptive, asynchronous, retention, target_metric
from protocol.errors import FedSophiaError


def test_an_adaptive_deadline_is_three_numbers():
    found = adaptive("4:10s:30m")
    assert found is not None
    assert (found.spread, found.floor_s, found.ceiling_s) == (4.0, 10.0, 1800.0)
    assert adaptive(None) is None


@pytest.mark.parametrize("text", ["4", "4:10s", "x:1s:2s", "4:2s:1s", "4:1s:never", "-1:1s:2s"])
def test_anything_else_is_refused(text):
    with pytest.raises(FedSophiaError):
        adaptive(text)


def test_asynchronous_rounds_have_settings_by_name():
    assert asynchronous(None) is None
    said = asynchronous("yes")
    assert said is not None
    assert said.model_dump() == {"max_staleness": 20, "staleness_exponent": 0.5, "concurrency": None}
    said = asynchronous("max-staleness=7, staleness-exponent=1,concurrency=64")
    assert said is not None
    assert said.model_dump() == {"max_staleness": 7, "staleness_exponent": 1.0, "concurrency": 64}


@pytest.mark.parametrize(
    "text",
    ["", "no", "max-staleness", "max-staleness=-1", "age=3", "concurrency=0", "concurrency=1,concurrency=2"],
)
def test_other_settings_of_asynchronous_rounds_are_refused(text):
    with pytest.raises(FedSophiaError):
        asynchronous(text)


def test_a_target_has_a_direction():
    found = target_metric("test_accuracy >= 0.8")
    assert found is not None
    assert found.reached(0.8)
    assert not found.reached(0.79)
    low = target_metric("test_loss<=0.5")
    assert low is not None
    assert low.reached(0.4)
    assert not low.reached(0.6)


@pytest.mark.parametrize("text", ["test_accuracy", "test_accuracy=0.8", ">=1", "Test>=1", "loss>=many"])
def test_a_target_without_name_direction_or_value_is_refused(text):
    with pytest.raises(FedSophiaError):
        target_metric(text)


def test_what_is_kept_is_read_as_people_type_it():
    said = retention(["last=3", "every=50", "lowest=test_loss:2", "updates=1"])
    assert said is not None
    assert said.model_dump() == {
        "last": 3,
        "every": 50,
        "best": {"metric": "test_loss", "order": "lowest", "count": 2},
        "update_rounds": 1,
    }
    assert retention([]) is None


@pytest.mark.parametrize(
    "texts", [["last"], ["last=x"], ["best=3"], ["highest="], ["last=0"], ["last=1", "last=2"], ["every=-1"]]
)
def test_what_cannot_be_kept_is_refused(texts):
    with pytest.raises(FedSophiaError):
        retention(texts)
