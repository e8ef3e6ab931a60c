# SPDX-License-Identifier: Apache-2.0
"""What a round costs in other frameworks, each run from a virtual environment of its own."""
