# SPDX-License-Identifier: Apache-2.0
"""The part of a model that is exchanged: its trainable parameters, as named numpy arrays and back.

The rule: every parameter with `requires_grad` is exchanged, by its name and in the model's order, as
float32. Parameters without it never cross the wire and must be identical on all workers. A model with
persistent buffers (BatchNorm's statistics) is refused: nothing would carry them between workers yet. A
buffer that is not persistent (a causal mask) is taken for a constant that the model's code makes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from protocol.codec import Bundle, Float32Array, require_finite
from protocol.errors import InvalidTask, ShapeMismatch
from worker.optimizers.base import Tensors

Arrays = dict[str, Float32Array]


@dataclass(frozen=True)
class ExchangedParameters:
    """A model's exchanged parameters: the tensors themselves, not copies."""

    names: tuple[str, ...]
    tensors: Tensors

    @classmethod
    def of(cls, model: nn.Module) -> "ExchangedParameters":
        """Find them.

        Raises:
            InvalidTask: the model has persistent buffers, nothing to train, or parameters of another type.
        """
        saved = model.state_dict()
        buffers = [name for name, _ in model.named_buffers(remove_duplicate=False) if name in saved]
        if buffers:
            raise InvalidTask(
                f"the model has persistent buffers ({buffers[0]} is the first), which are not exchanged yet: "
                "use layers without running statistics, such as GroupNorm or LayerNorm for BatchNorm, and "
                "register a constant, such as a mask, with persistent=False"
            )
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not named:
            raise InvalidTask("the model has no parameters to train")
        for name, parameter in named.items():
            if parameter.dtype != torch.float32:
                raise InvalidTask(f"{name}: expected float32, got {parameter.dtype}")
        return cls(tuple(named), tuple(named.values()))

    def load(self, params: Bundle) -> None:
        """Overwrite the parameters with those of a bundle.

        Raises:
            ShapeMismatch: names, order or shapes are not the model's.
        """
        with torch.no_grad():
            for parameter, new in zip(self.tensors, self.tensors_of("params", params), strict=True):
                parameter.copy_(new)

    def tensors_of(self, bundle_name: str, bundle: Bundle) -> Tensors:
        """Give a bundle's arrays as new tensors on the parameters' device.

        Raises:
            ShapeMismatch: names, order or shapes are not the model's.
        """
        if tuple(bundle) != self.names:
            raise ShapeMismatch(
                f"{bundle_name}: expected {_listed(self.names)}; got {_listed(tuple(bundle))}"
            )
        tensors = []
        for (name, array), parameter in zip(bundle.items(), self.tensors, strict=True):
            if array.shape != tuple(parameter.shape):
                raise ShapeMismatch(
                    f"{bundle_name}/{name}: expected {tuple(parameter.shape)}, got {array.shape}"
                )
            # np.array copies: arrays off the wire are read-only views, which torch must not share
            tensors.append(torch.from_numpy(np.array(array, dtype=np.float32)).to(parameter.device))
        return tuple(tensors)

    def arrays_of(self, bundle_name: str, tensors: Tensors) -> Arrays:
        """Give tensors, one a parameter, as named arrays; on a CPU they share memory.

        Raises:
            NotFinite: one holds NaN or an infinity.
        """
        arrays = {
            name: tensor.detach().cpu().numpy() for name, tensor in zip(self.names, tensors, strict=True)
        }
        for name, array in arrays.items():
            require_finite(f"{bundle_name}/{name}", array)
        return arrays

    def delta_from(self, start: Mapping[str, Float32Array], ends: Tensors | None = None) -> Arrays:
        """θ_J − θ_0 in float32, as new arrays.

        Args: ends: θ_J; None means the parameters themselves. With a dimension of workers in front, so has
            the delta.

        Raises:
            NotFinite: a parameter is NaN or infinite, or as far from its start as float32 cannot hold.
        """
        with np.errstate(over="ignore"):
            arrays = self.arrays_of("params", self.tensors if ends is None else ends)
            delta = {name: end - start[name] for name, end in arrays.items()}
        for name, array in delta.items():
            require_finite(f"delta/{name}", array)
        return delta


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})"
