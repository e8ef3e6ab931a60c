# SPDX-License-Identifier: Apache-2.0
"""A round without training, in real processes: what `benchmarks.round_cost` measures, and its floors."""
