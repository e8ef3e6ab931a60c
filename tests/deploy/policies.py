# SPDX-License-Identifier: Apache-2.0
"""Menu: the policies that every manifest is held to.

To add one, write it where its like are, a line here, and one in `spoiled.py` that it complains of.
"""

from collections.abc import Callable, Iterator

from tests.deploy.confinement import (
    images_are_pinned,
    nothing_secret_is_written,
    pods_are_confined,
    ports_are_named,
    resources_are_bounded,
    selectors_match,
    what_serves_is_probed,
)
from tests.deploy.federation import (
    proxies_let_it_through,
    servers_are_scaled,
    servers_have_time_to_stop,
    settings_are_set,
    variables_exist,
)
from tests.deploy.manifests import Resources
from tests.deploy.reach import network_is_closed

Policy = Callable[[Resources], Iterator[str]]

POLICIES: dict[str, Policy] = {
    policy.__name__: policy
    for policy in (
        pods_are_confined,
        resources_are_bounded,
        images_are_pinned,
        what_serves_is_probed,
        ports_are_named,
        variables_exist,
        settings_are_set,
        selectors_match,
        nothing_secret_is_written,
        servers_have_time_to_stop,
        servers_are_scaled,
        proxies_let_it_through,
        network_is_closed,
    )
}
