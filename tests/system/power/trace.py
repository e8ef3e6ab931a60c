# SPDX-License-Identifier: Apache-2.0
"""A server process whose system calls are written down, and the order of those calls."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.system.conftest import ServerProcess

CALLS = "fsync,fdatasync,rename,renameat,renameat2,pwrite64,write,writev,sendto,sendmsg"
TEXT_BYTES = 600
"""So much is shown of what a call writes: an answer's head, and all of a receipt."""


class TracedServer(ServerProcess):
    """A server under strace; only its files, renames, syncs and answers are watched."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.trace = data_dir.parent / "trace"
        self.prefix = (
            *("strace", "-D", "-f", "--seccomp-bpf", "-y", "-s", str(TEXT_BYTES)),  # -D: it is our child
            *("-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(self.trace)),
        )


@dataclass(frozen=True)
class Call:
    """One system call: when it began and when it had ended, in lines of the trace."""

    name: str
    text: str
    began: int
    ended: int

    def is_sync(self, path: str) -> bool:
        """Whether it makes the file or directory durable whose path ends like this."""
        return self.name in ("fsync", "fdatasync") and f"{path}>" in self.text

    def is_rename_to(self, path: str) -> bool:
        return self.name.startswith("rename") and f'{path}"' in self.text

    def is_write_to(self, path: str) -> bool:
        return self.name in ("write", "writev", "pwrite64") and f"{path}>" in self.text

    def is_answer(self, words: str) -> bool:
        """Whether it sends these words to a socket."""
        is_sent = re.match(r"\d+<(socket|TCP)", self.text) is not None
        return is_sent and words in self.text.replace('\\"', '"')


def calls_in(trace: Path) -> list[Call]:
    """All calls that ended well, by their beginning; several threads may be inside one at the same time."""
    open_calls: dict[str, tuple[str, str, int]] = {}
    calls: list[Call] = []
    for number, line in enumerate(trace.read_text("utf-8", "backslashreplace").splitlines()):
        if resumed := re.match(r"(\d+) +<\.\.\. \w+ resumed>(.*) = \d+$", line):
            name, text, began = open_calls.pop(resumed[1])
            calls.append(Call(name, text + resumed[2], began, number))
        elif unfinished := re.match(r"(\d+) +(\w+)\((.*) <unfinished \.\.\.>$", line):
            open_calls[unfinished[1]] = (unfinished[2], unfinished[3], number)
        elif whole := re.match(r"(\d+) +(\w+)\((.*)\) += \d+$", line):
            calls.append(Call(whole[2], whole[3], number, number))
    return sorted(calls, key=lambda call: call.began)
