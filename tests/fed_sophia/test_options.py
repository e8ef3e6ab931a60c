# SPDX-License-Identifier: Apache-2.0
"""How option values are read, and where the operator key is looked for."""

from pathlib import Path

import pytest

from fed_sophia.options import duration_s, hyperparameters, is_loopback, named_values, operator_key
from protocol.errors import InvalidUsage


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


def test_hyperparameters_keep_whole_numbers_whole() -> None:
    assert hyperparameters(["hessian_every=5", "epsilon=1e-12", "direction_mixing=none"]) == {
        "hessian_every": 5,
        "epsilon": 1e-12,
        "direction_mixing": None,
    }


@pytest.mark.parametrize("pair", ["", "a", "=1", "a="])
def test_a_pair_needs_a_name_and_a_value(pair: str) -> None:
    with pytest.raises(InvalidUsage, match="NAME=VALUE"):
        named_values([pair], "--set")


def test_a_hyperparameter_that_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidUsage, match="clip_bound=high"):
        hyperparameters(["clip_bound=high"])


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
