# SPDX-License-Identifier: Apache-2.0
"""Text that every machine has: the source files of Python's own standard library.

The beginning of each top-level `*.py` file (`text_files`), or whole files with those of all packages
(`whole_files`), in the order of their names. Left out is what differs between installations of one version:
files that are written when Python is built, a site's own, and packages that distributors ship by themselves.
The text differs between versions of Python all the same, and some distributors change it a little: results
name its digest.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocol.errors import DataUnavailable

MAX_CHARACTERS_OF_A_FILE = 10_000
MAX_CHARACTERS = 1_500_000
"""Of all files together; the last that would go beyond it is left out, and all after it."""
MAX_CHARACTERS_OF_WHOLE_FILES = 16_000_000
NOT_EVERYWHERE_THE_SAME = ("_sysconfigdata", "sitecustomize", "usercustomize")
FOLDERS_NOT_EVERYWHERE = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "tkinter", "turtledemo"}
    | {"lib2to3", "distutils", "ensurepip", "venv"}
)
ONE_FILE_IN = 10
"""That many files have one for evaluation, chosen by a hash of the name: the same in every version."""

CHARACTERS = "\t\n" + "".join(map(chr, range(0x20, 0x7F)))
UNKNOWN = len(CHARACTERS)
"""The number of every character that is not among `CHARACTERS`, whose numbers are their places there."""
VOCABULARY = len(CHARACTERS) + 1


@dataclass(frozen=True)
class TextFile:
    """A source file, or the beginning of one."""

    name: str
    """With the folders it is in, from the library's own on; `/` between them."""
    text: str

    @property
    def is_for_evaluation(self) -> bool:
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8]) % ONE_FILE_IN == 0


def text_files(folder: Path) -> list[TextFile]:
    """Read the text of a folder of Python files; line ends become one newline.

    Raises:
        DataUnavailable: a file cannot be read, or there is none to train on or none to evaluate.
    """
    return _read(folder, folder.glob("*.py"), MAX_CHARACTERS_OF_A_FILE, MAX_CHARACTERS)


def whole_files(folder: Path) -> list[TextFile]:
    """Read the text of a folder of Python files and of the folders in it; line ends become one newline.

    Raises:
        DataUnavailable: a file cannot be read, or there is none to train on or none to evaluate.
    """
    most = MAX_CHARACTERS_OF_WHOLE_FILES
    return _read(folder, _source_files_below(folder), most, most)


def _source_files_below(folder: Path) -> Iterator[Path]:
    for inside, folders, names in os.walk(folder, onerror=_refuse):
        # os.walk goes into what is left of `folders`; config-… is written when Python is built
        folders[:] = [
            each
            for each in folders
            if each not in FOLDERS_NOT_EVERYWHERE and not each.startswith(("config-", "."))
        ]
        yield from (Path(inside, name) for name in names if name.endswith(".py"))


def _refuse(error: OSError) -> None:
    raise error


def _read(folder: Path, paths: Iterable[Path], most_of_a_file: int, most_of_all: int) -> list[TextFile]:
    files, num_characters = [], 0
    try:
        for path in sorted(paths, key=lambda path: path.relative_to(folder).as_posix()):
            if path.name.startswith(NOT_EVERYWHERE_THE_SAME):
                continue
            # Python's own sources are UTF-8; a stray byte becomes an unknown character
            text = path.read_text(encoding="utf-8", errors="replace")[:most_of_a_file]
            num_characters += len(text)
            if num_characters > most_of_all:
                break
            files.append(TextFile(path.relative_to(folder).as_posix(), text))
    except OSError as error:
        raise DataUnavailable(f"{folder}: a source file cannot be read ({type(error).__name__})") from error
    if len({file.is_for_evaluation for file in files}) < 2:
        raise DataUnavailable(
            f"{folder}: expected the source files of Python's standard library, found {len(files)} files"
        )
    return files


def digest(files: list[TextFile]) -> str:
    """SHA-256, in hex, of the names and the text used: two places with one digest have the same examples."""
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(f"{file.name}\0{file.text}\0".encode())
    return hashed.hexdigest()


def numbers(text: str) -> npt.NDArray[np.int64]:
    """Each character's number, 0 to `VOCABULARY` - 1; shape (characters,)."""
    number_of = np.full(0x81, UNKNOWN, dtype=np.int64)
    number_of[[ord(character) for character in CHARACTERS]] = np.arange(len(CHARACTERS))
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    known: npt.NDArray[np.int64] = number_of[np.minimum(code_points, 0x80)]
    return known


def windows(text: str, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut a text into windows that do not overlap; give each one's characters and the character after each.

    Returns:
        Two arrays of shape (windows, length). The second is the first moved on by one character; the end
        of the text that fills no window is left out.
    """
    return cut(numbers(text), length)


def cut(numbers: npt.NDArray[np.int64], length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut a text's numbers as `windows` cuts characters."""
    num_windows = max(0, len(numbers) - 1) // length
    end = num_windows * length
    return numbers[:end].reshape(-1, length), numbers[1 : end + 1].reshape(-1, length)
