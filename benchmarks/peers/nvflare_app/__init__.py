# SPDX-License-Identifier: Apache-2.0
"""What NVFlare runs: a job, its controller and its worker."""

JOB_NAME = "bench"
