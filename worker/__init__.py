# SPDX-License-Identifier: Apache-2.0
"""Runs beside the data: waits for assignments, trains, and sends what changed.

torch is imported by the numerical modules only (`training`, `curvature`, `optimizers`, `tasks`), never
by this package itself.
"""
