# SPDX-License-Identifier: Apache-2.0
"""Whether every variable of ours in the environment is one that somebody reads."""

import difflib
import re
from collections.abc import Collection, Iterable

from ps_service.doctor.finding import Finding, ok, warning
from ps_service.settings import Settings

PREFIX = "FED_SOPHIA_"
_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?")
"""What it tells every container of a service that is called fed-sophia."""


def check_variables(names: Iterable[str], of_commands: Collection[str]) -> Finding:
    """Look for those that nothing knows.

    Args:
        names: all of the environment; a setting's may be in small letters.
        of_commands: those that other commands read.
    """
    ours = sorted(name for name in names if name.upper().startswith(PREFIX))
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields} | set(of_commands)
    unknown = [name for name in ours if name.upper() not in known]
    if not unknown:
        return ok(f"{len(ours)} of fed-sophia's are set, all of them known")
    links = [name for name in unknown if _KUBERNETES.fullmatch(name.upper().removeprefix(PREFIX))]
    if links == unknown:
        return warning(
            f"{', '.join(unknown)}: Kubernetes sets them for a service that is called fed-sophia",
            "say `enableServiceLinks: false` in the pod: it sets FED_SOPHIA_PORT, too",
        )
    misspelt = [name for name in unknown if name not in links]
    nearest = {name: difflib.get_close_matches(name.upper(), known, 1) for name in misspelt}
    meant = [f"{name}: did you mean {near[0]}?" for name, near in nearest.items() if near]
    remedy = " ".join(meant) or "take them away: the list of settings has all there are"
    return warning(f"nothing reads {', '.join(misspelt)}", remedy)
