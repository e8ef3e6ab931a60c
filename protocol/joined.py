# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of two algorithms joined: the workers' of one, the server's of the other.

The workers' keep their names. The server's begin with `server_`, so that none means two things; the server
algorithm's own `learning_rate` is that of its workers, who are not asked.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import create_model

from protocol.bound import DeltaBound
from protocol.estimates import HessianEstimate
from protocol.hyperparameters import Hyperparameters

_OF_ITS_WORKERS = "learning_rate"


class JoinedHyperparameters(Hyperparameters):
    """Everything is the local algorithm's, but what the server step asks for."""

    local: ClassVar[type[Hyperparameters]]
    server: ClassVar[type[Hyperparameters]]

    def optimizer_settings(self, local_steps: int) -> dict[str, float]:
        return self._for_workers().optimizer_settings(local_steps)

    def hessian_estimate(self) -> HessianEstimate:
        return self._for_workers().hessian_estimate()

    def for_server_step(self) -> Hyperparameters:
        names = _server_names(self.server)
        return self.server.model_validate({name: getattr(self, ours) for ours, name in names.items()})

    def periods(self) -> Mapping[str, int]:
        return self._for_workers().periods()

    def bundles_wanted(self, count: int) -> tuple[str, ...]:
        return self._for_workers().bundles_wanted(count)

    def bound(self, steps: int, local_steps: int) -> DeltaBound | None:
        return self._for_workers().bound(steps, local_steps)

    def _for_workers(self) -> Hyperparameters:
        return self.local.model_validate({name: getattr(self, name) for name in self.local.model_fields})


def joined(
    name: str, local: type[Hyperparameters], server: type[Hyperparameters]
) -> type[JoinedHyperparameters]:
    """Give the class whose fields are those of both, each with its default and its range."""
    infos = dict(local.model_fields)
    infos |= {ours: server.model_fields[theirs] for ours, theirs in _server_names(server).items()}
    fields: dict[str, Any] = {field: (info.annotation, info) for field, info in infos.items()}
    made = create_model(name, __base__=JoinedHyperparameters, __module__=__name__, **fields)
    made.local, made.server = local, server
    return made


def _server_names(server: type[Hyperparameters]) -> dict[str, str]:
    """{our name: the server algorithm's own} of what its server step takes."""
    own = [name for name in server.model_fields if name != _OF_ITS_WORKERS]
    return {name if name.startswith("server_") else f"server_{name}": name for name in own}
