# SPDX-License-Identifier: Apache-2.0
"""What takes long and is the same in every process: done once, in the one from which all are forked."""

import pytest  # noqa: F401  # each looks for it: it is the main module of the process that orders the fork
import sklearn.datasets  # noqa: F401
import torch  # noqa: F401

from tests.system.crash import doomed_server, doomed_worker  # noqa: F401
from worker.client import ServerClient

ServerClient("http://127.0.0.1")  # makes the TLS context that all clients of a process share
