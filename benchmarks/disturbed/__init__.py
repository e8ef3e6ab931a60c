# SPDX-License-Identifier: Apache-2.0
"""A federation of workers that die, dawdle and lie as a seed decides: for `benchmarks.reliability`."""
