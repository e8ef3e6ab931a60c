# SPDX-License-Identifier: Apache-2.0
"""What a server with these settings would need, looked at before or beside it: one file a check.

A check is a function of the settings that gives one `Finding`. It may block; `examination` gives it a thread
and a time limit. It leaves everything as it was, but for a probe that it removes, and may be made while a
server is running. To add one, write its file and a line in `CHECKS`.
"""

from collections.abc import Callable, Mapping

from ps_service.doctor.blobs import check_blobs
from ps_service.doctor.clock import check_clock
from ps_service.doctor.data_directory import check_data_directory
from ps_service.doctor.database import check_database
from ps_service.doctor.finding import Finding
from ps_service.doctor.limits import check_limits
from ps_service.doctor.operator_key import check_operator_key
from ps_service.doctor.tls_files import check_tls_files
from ps_service.settings import Settings

CHECKS: Mapping[str, Callable[[Settings], Finding]] = {
    "data-directory": check_data_directory,
    "database": check_database,
    "clock": check_clock,
    "blobs": check_blobs,
    "tls": check_tls_files,
    "operator-key": check_operator_key,
    "limits": check_limits,
}
