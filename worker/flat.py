# SPDX-License-Identifier: Apache-2.0
"""Many tensors in one: where each lies in a flat buffer of all of them.

A step over a flat buffer is one operation however many tensors a model has, and so is a copy, a
difference or a check. A buffer may have dimensions in front, of workers that step together: (K, n).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ALIGNMENT = 4
"""Coordinates of 4 bytes: fast kernels load 16 bytes at a time."""


@dataclass(frozen=True)
class Layout:
    """The shapes of some tensors; their values follow each other in the buffer, without a gap.

    First those whose size is a multiple of `ALIGNMENT`, then the others, each in the order given: so that as
    many as can be begin on a boundary.
    """

    shapes: tuple[torch.Size, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(shape.numel() for shape in self.shapes)

    @property
    def size(self) -> int:
        """n: coordinates of the buffer."""
        return sum(self.sizes)

    @cached_property
    def _order(self) -> tuple[int, ...]:
        return tuple(sorted(range(len(self.sizes)), key=lambda index: self.sizes[index] % ALIGNMENT != 0))

    @cached_property
    def _sizes_in_order(self) -> list[int]:
        return [self.sizes[index] for index in self._order]

    def views(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Give the tensors in a buffer (…, n), each (…, *shape), in the order of `shapes`; not copies."""
        lead = flat.shape[:-1]
        views: list[Tensor] = [flat] * len(self.shapes)
        for index, part in zip(self._order, torch.split(flat, self._sizes_in_order, dim=-1), strict=True):
            views[index] = part.view((*lead, *self.shapes[index]))
        return tuple(views)

    def flattened(self, tensors: Sequence[Tensor]) -> Tensor:
        """Copy tensors, each (…, *shape), into a new float32 buffer (…, n)."""
        lead = tensors[0].shape[: tensors[0].ndim - len(self.shapes[0])]
        rows = [tensors[index].reshape((*lead, self.sizes[index])) for index in self._order]
        return torch.cat(rows, dim=-1).to(torch.float32)


class FlatSum:
    """A sum of tensors in one new buffer."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.flat: Tensor | None = None

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors, each (…, *shape) and without a graph."""
        if self.flat is None:
            self.flat = self._layout.flattened(tensors)
        else:
            torch._foreach_add_(self._layout.views(self.flat), list(tensors))
