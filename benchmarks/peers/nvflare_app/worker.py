# SPDX-License-Identifier: Apache-2.0
"""The script that NVFlare runs at each site: return what came, plus a constant."""

import nvflare.client as flare

from benchmarks.peers.workload import update


def main() -> None:
    flare.init()
    index = int(flare.get_site_name().removeprefix("site-")) - 1
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        names = sorted(received.params)
        arrays, weight = update([received.params[name] for name in names], index)
        params = dict(zip(names, arrays, strict=True))
        flare.send(flare.FLModel(params=params, meta={"NUM_STEPS_CURRENT_ROUND": weight}))


if __name__ == "__main__":
    main()
