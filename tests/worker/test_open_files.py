# SPDX-License-Identifier: Apache-2.0
"""A process that holds many workers has many files open, or says at once that it may not."""

import resource
from collections.abc import Iterator

import pytest

from protocol.errors import InvalidUsage
from worker.open_files import MANY, allow_members, more_than


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_as_many_files_may_be_open_as_the_system_allows():
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, most))
    allow_members(300)
    now, still_most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (now > 512, still_most) == (True, most)


def test_a_swarm_that_needs_more_files_than_it_may_open_is_refused_before_it_begins():
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] == resource.RLIM_INFINITY:
        pytest.skip("any number of files may be open here")
    with pytest.raises(InvalidUsage, match=r"ulimit -n"):
        allow_members(2**40)


def test_no_limit_is_tried_that_is_less_than_what_is_allowed_already():
    """macOS says that there is no limit, and takes no more than some number all the same."""
    endless = resource.RLIM_INFINITY
    assert more_than(256, endless) == [endless, MANY]
    assert more_than(2 * MANY, endless) == [endless]
    assert more_than(endless, endless) == []
