# SPDX-License-Identifier: Apache-2.0
"""Task `char-lm`: predict the next character of Python source text, that of Python's standard library.

About 20,000 windows of 64 characters to train on and 1,600 to evaluate, of other files. A training
example's group is the file it is from. The text differs between versions of Python: results should name
`CharLm.text_digest`, and all workers of a run need one version.
"""

import sysconfig
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from worker.tasks.base import Examples, Task
from worker.tasks.character_transformer import CharacterTransformer
from worker.tasks.library_text import VOCABULARY, TextFile, digest, text_files, windows

CONTEXT = 64


class CharLm(Task):
    """Two blocks of width 64 with 4 heads: 116,834 parameters. Inputs and targets (N, 64), 98 characters."""

    name = "char-lm"

    def model(self) -> nn.Module:
        return CharacterTransformer(VOCABULARY, context=CONTEXT)

    def training_data(self) -> Examples:
        return _examples([file for file in _files() if not file.is_for_evaluation])

    def evaluation_data(self) -> Examples:
        return _examples([file for file in _files() if file.is_for_evaluation])

    def groups(self) -> npt.NDArray[np.int64]:
        files = [file for file in _files() if not file.is_for_evaluation]
        sizes = [len(windows(file.text, CONTEXT)[0]) for file in files]
        return np.repeat(np.arange(len(files)), sizes)

    @property
    def text_digest(self) -> str:
        """SHA-256, in hex, of the text used here."""
        return digest(_files())


def _files() -> list[TextFile]:
    return text_files(Path(sysconfig.get_paths()["stdlib"]))


def _examples(files: list[TextFile]) -> Examples:
    inputs, targets = zip(*(windows(file.text, CONTEXT) for file in files), strict=True)
    return Examples(torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(targets)))
