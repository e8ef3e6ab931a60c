# SPDX-License-Identifier: Apache-2.0
"""What is loaded for good is not looked through for garbage; all else is, as before."""

import gc

import pytest

from worker.lasting import lasting


def is_looked_through(thing: object) -> bool:
    return any(each is thing for each in gc.get_objects())


def test_what_is_made_inside_is_never_looked_through_and_what_is_made_later_is() -> None:
    with lasting():
        inside: list[list[int]] = [[]]
    later: list[list[int]] = [[]]
    assert not is_looked_through(inside)
    assert is_looked_through(later)


def test_no_garbage_is_looked_for_inside_and_some_is_again_even_after_an_error() -> None:
    with pytest.raises(ModuleNotFoundError), lasting():
        assert not gc.isenabled()
        raise ModuleNotFoundError
    assert gc.isenabled()
