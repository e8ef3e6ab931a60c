# SPDX-License-Identifier: Apache-2.0
"""How option values are read, and where the operator key is looked for."""

from pathlib import Path

import pytest

from fed_sophia.options import (
    algorithm_names,
    duration_s,
    hyperparameters,
    is_loopback,
    named_values,
    operator_key,
    read_secret,
    run_id,
    server_address,
)
from protocol.errors import InvalidUsage, UnknownAlgorithm


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("24h", 86_400), ("7d", 604_800), ("0.5s", 0.5)],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert duration_s(text, "--deadline") == seconds


@pytest.mark.parametrize("text", ["", "m", "-1m", "1w", "0", "ten", "1m30s", "nan", "inf"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidUsage, match="--deadline"):
        duration_s(text, "--deadline")


def test_the_shell_is_offered_algorithms_and_after_a_plus_sign_what_may_follow() -> None:
    assert algorithm_names("fed-") == ["fed-sophia-shared", "fed-sophia"]
    assert algorithm_names("fedprox+fedad") == ["fedprox+fedadam", "fedprox+fedadagrad"]
    assert algorithm_names("fedlion+") == []


def test_two_algorithms_that_are_joined_take_the_numbers_of_both() -> None:
    assert hyperparameters(["server_epsilon=0.1", "proximal_weight=1"], "fedprox+fedadam") == {
        "server_epsilon": 0.1,
        "proximal_weight": 1,
    }
    with pytest.raises(InvalidUsage, match=r"--set epsilon: fedprox\+fedadam has .*server_epsilon"):
        hyperparameters(["epsilon=0.1"], "fedprox+fedadam")


def test_hyperparameters_keep_whole_numbers_whole() -> None:
    pairs = ["refresh_rounds=5", "epsilon=1e-12", "direction_mixing=none"]
    assert hyperparameters(pairs, "fed-sophia-shared") == {
        "refresh_rounds": 5,
        "epsilon": 1e-12,
        "direction_mixing": None,
    }


@pytest.mark.parametrize("pair", ["", "a", "=1", "a="])
def test_a_pair_needs_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(InvalidUsage, match="NAME=VALUE"):
        named_values([pair], "--set")


@pytest.mark.parametrize("value", ["high", "nan", "inf", "-inf", "1e999"])
def test_a_hyperparameter_that_is_no_finite_number_is_refused(value: str) -> None:
    with pytest.raises(InvalidUsage, match=f"clip_bound={value}: expected a finite number"):
        hyperparameters([f"clip_bound={value}"], "fed-sophia")


def test_a_hyperparameter_that_the_algorithm_does_not_have_is_answered_with_those_it_has() -> None:
    with pytest.raises(InvalidUsage, match=r"--set foo: fed-sophia has .*max_round_step, .*hessian_every"):
        hyperparameters(["foo=1"], "fed-sophia")
    with pytest.raises(UnknownAlgorithm):
        hyperparameters(None, "fedmagic")


@pytest.mark.parametrize("text", ["schlüssel", "one\ntwo", "one two", "\x00", "", " \n"])
def test_a_secret_that_cannot_travel_in_a_header_is_refused_without_being_repeated(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "a.key").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidUsage, match=r"a\.key") as refusal:
        read_secret(tmp_path / "a.key", "operator key")
    assert not text.strip() or text not in refusal.value.detail
    assert "one" not in refusal.value.detail.replace("one line", "")


def test_an_operator_key_of_the_environment_is_held_to_the_same() -> None:
    with pytest.raises(InvalidUsage, match="FED_SOPHIA_OPERATOR_KEY holds no operator key"):
        operator_key("http://127.0.0.1:8080", None, {"FED_SOPHIA_OPERATOR_KEY": "schlüssel"})


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://", "ftp://here", "here:80", "http://h:x", "http://a b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidUsage, match="expected an address like"):
        server_address(url)


@pytest.mark.parametrize("text", ["../x", "a/b", "", "a?b", "a b"])
def test_what_cannot_be_a_run_s_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidUsage, match="expected a run's id"):
        run_id(text)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:8080/", True),
        ("https://localhost.example.org", False),
        ("http://10.0.0.1:8080", False),
    ],
)
def test_which_addresses_are_this_machine(url: str, here: bool) -> None:
    assert is_loopback(url) is here


def test_a_key_file_goes_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "operator.key").write_text("from-file\n")
    environment = {"FED_SOPHIA_OPERATOR_KEY": "from-variable"}
    assert operator_key("http://far.example.org", tmp_path / "operator.key", environment) == "from-file"
    assert operator_key("http://far.example.org", None, environment) == "from-variable"


def test_the_key_beside_us_serves_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fed-sophia-data").mkdir()
    (tmp_path / "fed-sophia-data" / "operator.key").write_text("local")
    monkeypatch.chdir(tmp_path)
    assert operator_key("http://127.0.0.1:8080", None, {}) == "local"
    with pytest.raises(InvalidUsage, match="--operator-key-file"):
        operator_key("http://far.example.org:8080", None, {})


def test_a_hyperparameter_that_is_a_word_is_taken_as_it_stands() -> None:
    pairs = ["hessian_estimator=empirical-fisher", "hessian_batch=8", "hessian_every=5"]
    assert hyperparameters(pairs, "fed-sophia") == {
        "hessian_estimator": "empirical-fisher",
        "hessian_batch": 8,
        "hessian_every": 5,
    }
