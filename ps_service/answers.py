# SPDX-License-Identifier: Apache-2.0
"""Whether a server of this machine answers, for health checks that run a command.

    python -m ps_service.answers http://127.0.0.1:8080/readyz

Exit code 0 if it says that all is well, else 1. Where it speaks TLS its certificate is for another name than
this one, and is not looked at.
"""

import ssl
import sys
from urllib.error import URLError
from urllib.request import urlopen

ANSWERS_WITHIN_S = 4.0


def answers(url: str) -> bool:
    """Whether this address says that all is well."""
    unverified = ssl._create_unverified_context() if url.startswith("https:") else None
    try:
        with urlopen(url, timeout=ANSWERS_WITHIN_S, context=unverified):
            return True
    except (URLError, OSError, ValueError) as error:
        print(f"{url}: {error}", file=sys.stderr)  # noqa: T201  # podman and docker keep what a check says
        return False


if __name__ == "__main__":
    sys.exit(0 if len(sys.argv) == 2 and answers(sys.argv[1]) else 1)
