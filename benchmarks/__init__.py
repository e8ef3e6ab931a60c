# SPDX-License-Identifier: Apache-2.0
"""Measurements behind figures of the documentation: each file is a command, `python -m benchmarks.NAME`."""
