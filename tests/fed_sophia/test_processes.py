# SPDX-License-Identifier: Apache-2.0
"""What is said of a process that ends too early."""

from pathlib import Path

import pytest

from fed_sophia.processes import Children
from protocol.errors import Internal


async def test_a_child_that_fails_is_told_in_its_own_words_and_not_as_json(tmp_path: Path) -> None:
    children = Children(tmp_path)
    try:
        child = await children.start("swarm-0", ["swarm", "--workers", "0", "--task", "digits"])
        await child.process.wait()
        with pytest.raises(Internal, match=r"swarm-0 ended early .*--workers.* \(invalid-usage\)$") as ending:
            children.check_alive()
    finally:
        await children.stop()
    assert "{" not in ending.value.detail
