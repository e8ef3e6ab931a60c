# SPDX-License-Identifier: Apache-2.0
"""Tasks `gpt2-small` and `gpt-mini`: predict the next token of Python source text, trained from scratch.

The text is that of Python's standard library, whole files with all packages; a training example's group is
the file it is from, and examples do not overlap. Tokens are the most frequent pieces of the training text
(`pieces.py`). Both differ between versions of Python, and then a number means one piece to one worker and
another to the next: the model's first parameter is called after the vocabulary, so that a worker that has
another one refuses the parameters of a run and does not train on them.
"""

import sysconfig
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from worker.tasks.base import Examples, Task
from worker.tasks.gpt import Gpt
from worker.tasks.library_text import cut, digest, whole_files
from worker.tasks.pieces import Vocabulary


class _LibraryGpt(Task):
    """A GPT on the standard library's text. Inputs and targets (N, context), numbers below `max_tokens`."""

    context: ClassVar[int]
    width: ClassVar[int]
    heads: ClassVar[int]
    blocks: ClassVar[int]
    outputs: ClassVar[int]
    """Rows of the embedding: as many as tokens, and some more to make it a size that GPUs like."""
    max_tokens: ClassVar[int]

    def model(self) -> nn.Module:
        return Gpt(
            self.outputs,
            context=self.context,
            width=self.width,
            heads=self.heads,
            blocks=self.blocks,
            embedding=f"tokens_{self.vocabulary.digest[:8]}",
        )

    def training_data(self) -> Examples:
        return _examples(_tokens(self.max_tokens).training, self.context)

    def evaluation_data(self) -> Examples:
        return _examples(_tokens(self.max_tokens).evaluation, self.context)

    def groups(self) -> npt.NDArray[np.int64]:
        files = _tokens(self.max_tokens).training
        return np.repeat(np.arange(len(files)), [len(cut(file, self.context)[0]) for file in files])

    @property
    def vocabulary(self) -> Vocabulary:
        """What the tokens are; of the training text alone."""
        return _tokens(self.max_tokens).vocabulary

    @property
    def text_digest(self) -> str:
        """SHA-256, in hex, of the text used here, from which the tokens follow."""
        return _tokens(self.max_tokens).text_digest


class Gpt2Small(_LibraryGpt):
    """12 blocks of width 768 with 12 heads, context 1,024: 124,475,904 parameters."""

    name = "gpt2-small"
    context, width, heads, blocks = 1024, 768, 12, 12
    outputs, max_tokens = 50_304, 50_257


class GptMini(_LibraryGpt):
    """4 blocks of width 128 with 4 heads, context 128: 1,334,016 parameters."""

    name = "gpt-mini"
    context, width, heads, blocks = 128, 128, 4, 4
    outputs, max_tokens = 4096, 4096


class _Tokens(NamedTuple):
    training: tuple[npt.NDArray[np.int64], ...]
    """Each file's."""
    evaluation: tuple[npt.NDArray[np.int64], ...]
    vocabulary: Vocabulary
    text_digest: str


@cache  # a second or two each, and wanted for the examples, their groups and the digest
def _tokens(max_tokens: int) -> _Tokens:
    files = whole_files(Path(sysconfig.get_paths()["stdlib"]))
    training = [file.text for file in files if not file.is_for_evaluation]
    evaluation = [file.text for file in files if file.is_for_evaluation]
    vocabulary = Vocabulary.of(training, max_tokens)
    return _Tokens(
        tuple(map(vocabulary.encode, training)),
        tuple(map(vocabulary.encode, evaluation)),
        vocabulary,
        digest(files),
    )


def _examples(files: tuple[npt.NDArray[np.int64], ...], context: int) -> Examples:
    inputs, targets = zip(*(cut(file, context) for file in files), strict=True)
    return Examples(torch.from_numpy(np.concatenate(inputs)), torch.from_numpy(np.concatenate(targets)))
