# SPDX-License-Identifier: Apache-2.0
"""What others wrote does not move a terminal."""

import io

from rich.console import Console

from fed_sophia.output import HumanOutput, one_line


def test_what_others_wrote_cannot_move_the_terminal():
    screen = io.StringIO()
    output = HumanOutput(Console(file=screen, soft_wrap=True))
    output.event("run", "reason: \x1b[2J\x07gone\nsecond line", {})
    output.summary("\x9b1mbold", {})
    assert screen.getvalue() == "reason: \ufffd[2J\ufffdgone\nsecond line\n\ufffd1mbold\n"


def test_an_error_is_one_line_whatever_it_quotes():
    assert one_line("bad\n name\t\x1b[31m'x'") == "bad name \ufffd[31m'x'"
