# SPDX-License-Identifier: Apache-2.0
"""Every error is named once, explained, and says whose fault it is."""

import re

import pytest

from protocol import errors
from protocol.errors import FedSophiaError, Internal, every_error


def classes() -> list[type[FedSophiaError]]:
    return [
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, FedSophiaError) and found is not FedSophiaError
    ]


def test_every_class_is_listed_and_stands_right_under_the_root() -> None:
    assert set(every_error()) == set(classes())
    assert all(error.__bases__ == (FedSophiaError,) for error in classes())


def test_no_code_is_used_twice() -> None:
    codes = [error.code for error in every_error()]
    assert codes == sorted(set(codes))


@pytest.mark.parametrize("error", classes())
def test_a_class_states_its_code_its_fault_and_its_meaning_itself(error: type[FedSophiaError]) -> None:
    assert {"code", "fault", "__doc__"} <= set(vars(error))
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error.code)
    assert error.__doc__ is not None
    assert error.__doc__.endswith(".")
    assert isinstance(error.retryable, bool)


@pytest.mark.parametrize("error", classes())
def test_a_code_is_its_class_name_in_kebab_case(error: type[FedSophiaError]) -> None:
    assert error.code == re.sub(r"(?<!^)(?=[A-Z])", "-", error.__name__).lower()


def test_an_error_says_what_was_found_and_without_words_what_its_class_means() -> None:
    assert Internal("disk full").detail == "disk full"
    assert Internal().detail == Internal.__doc__
