# SPDX-License-Identifier: Apache-2.0
"""What PyTorch does inside a `with` block, seen from below."""

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watched(TorchDispatchMode):
    """Sees the memory of the largest tensor that is made, and whether a GPU would have been waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.largest_bytes = 0
        self.waited_for_the_device = False
        """A number was taken out of a tensor; on a GPU, it has to be computed first."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.waited_for_the_device |= func.name() == "aten::_local_scalar_dense"
        made = [each.untyped_storage().nbytes() for each in tree_leaves(result) if isinstance(each, Tensor)]
        self.largest_bytes = max([self.largest_bytes, *made])
        return result
