# SPDX-License-Identifier: Apache-2.0
"""The part of a model that is exchanged: its trainable parameters, as named numpy arrays and back.

The rule: every parameter with `requires_grad` is exchanged, by its name and in the model's order, as
float32. Parameters without it never cross the wire and must be identical on all workers. A model with
persistent buffers (BatchNorm's statistics) is refused: nothing would carry them between workers yet. A
buffer that is not persistent (a causal mask) is taken for a constant that the model's code makes.

In memory they lie one behind the other in one flat float32 buffer, of which the model's parameters are
views. A bfloat16 parameter is a rounded copy of its place there: a step is far smaller than what bfloat16
can add to a parameter, and the bound of a delta holds for what was added, not for what was rounded. A model
whose code puts a parameter elsewhere, or another in its place, or makes one later, would not learn, and is
refused; so is one with two parameters in one place, which would come apart.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protocol.codec import Bundle, Float32Array, require_finite
from protocol.errors import InvalidTask, ShapeMismatch
from worker.flat import Layout
from worker.optimizers.base import Tensors

Arrays = dict[str, Float32Array]


@dataclass(frozen=True)
class ExchangedParameters:
    """A model's exchanged parameters, and where they lie."""

    model: nn.Module
    names: tuple[str, ...]
    layout: Layout
    flat: Tensor
    """θ, shape (n,), float32: what is stepped."""
    tensors: Tensors
    """The model's own parameters, not copies."""
    rounded: tuple[tuple[Tensor, Tensor], ...]
    """For each parameter that is not float32: itself, and its place in `flat`."""
    addresses: tuple[int, ...]
    """Where the values of each of `tensors` must lie."""

    @classmethod
    def of(cls, model: nn.Module) -> "ExchangedParameters":
        """Find a model's, and move their values into one buffer on their device.

        Raises:
            InvalidTask: the model has persistent buffers, nothing to train, parameters of another type, or
                two of them in one place.
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
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise InvalidTask(f"{name}: expected float32 or bfloat16, got {parameter.dtype}")
        _require_apart(model)
        layout = Layout(tuple(parameter.shape for parameter in named.values()))
        with torch.no_grad():
            flat = layout.flattened([parameter.detach() for parameter in named.values()])
        rounded = []
        for parameter, place in zip(named.values(), layout.views(flat), strict=True):
            if parameter.dtype == torch.float32:
                parameter.data = place
            else:
                rounded.append((parameter.data, place))
        tensors = tuple(named.values())
        return cls(model, tuple(named), layout, flat, tensors, tuple(rounded), _addresses(tensors))

    def show(self) -> None:
        """Let the model's parameters be what is in `flat`, where they are not views of it."""
        if self.rounded:
            ours, places = zip(*self.rounded, strict=True)
            torch._foreach_copy_(ours, places)

    def require_in_place(self) -> None:
        """Raises: InvalidTask: the model's code has put one elsewhere or made one, which no step moves."""
        now = dict(self.model.named_parameters())
        for name, tensor, address in zip(self.names, self.tensors, self.addresses, strict=True):
            if now.get(name) is not tensor or tensor.data_ptr() != address:
                raise InvalidTask(
                    f"{name}: the model's code has put it elsewhere in memory (by parameter.data = …, a new "
                    "nn.Parameter, or a recurrent layer's flatten_parameters()), where training does not "
                    "reach it"
                )
        for name, parameter in now.items():
            if parameter.requires_grad and name not in self.names:
                raise InvalidTask(
                    f"{name}: the model's code has made it, or set its requires_grad, after model() had "
                    "returned, so that training does not reach it"
                )

    def load(self, params: Bundle) -> None:
        """Overwrite the parameters with those of a bundle.

        Raises:
            ShapeMismatch: names, order or shapes are not the model's.
        """
        self.take(self.flat_of("params", params))

    def take(self, flat: Tensor) -> None:
        """Overwrite the parameters with those of a buffer of the same layout."""
        self.flat.copy_(flat)
        self.show()

    def flat_of(self, bundle_name: str, bundle: Bundle) -> Tensor:
        """Give a bundle's arrays as a new buffer, shape (n,), on the parameters' device.

        Raises:
            ShapeMismatch: names, order or shapes are not the model's.
        """
        if tuple(bundle) != self.names:
            raise ShapeMismatch(
                f"{bundle_name}: expected {_listed(self.names)}; got {_listed(tuple(bundle))}"
            )
        for (name, array), shape in zip(bundle.items(), self.layout.shapes, strict=True):
            if array.shape != tuple(shape):
                raise ShapeMismatch(f"{bundle_name}/{name}: expected {tuple(shape)}, got {array.shape}")
        # numpy copies: arrays off the wire are read-only views, which torch must not share
        flat = torch.empty(self.layout.size)
        for view, array in zip(self.layout.views(flat), bundle.values(), strict=True):
            view.numpy()[...] = array
        return flat.to(self.flat.device)

    def arrays_of(self, bundle_name: str, flat: Tensor) -> Arrays:
        """Give a buffer, shape (…, n), as named arrays; on a CPU they share its memory.

        Raises:
            NotFinite: it holds NaN or an infinity.
        """
        views = self.layout.views(flat.detach().cpu())
        arrays = {name: view.numpy() for name, view in zip(self.names, views, strict=True)}
        # one look where it lies; which tensor it is in matters only if there is something
        if not torch.isfinite(flat).all():
            for name, array in arrays.items():
                require_finite(f"{bundle_name}/{name}", array)
        return arrays


def _addresses(tensors: Tensors) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)


def _require_apart(model: nn.Module) -> None:
    """Raises: InvalidTask: a parameter to train shares its place with another: each would get its own."""
    at: dict[int, tuple[str, bool]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.data_ptr():  # it has no values
            continue
        other, trained = at.setdefault(parameter.data_ptr(), (name, parameter.requires_grad))
        if other != name and (trained or parameter.requires_grad):
            raise InvalidTask(
                f"{name}: has its values where {other} has them; to tie two layers, give both the same "
                "nn.Parameter (second.weight = first.weight)"
            )


def _listed(names: tuple[str, ...]) -> str:
    return f"{len(names)} tensors ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
