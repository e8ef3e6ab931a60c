# SPDX-License-Identifier: Apache-2.0
"""Experiments: algorithms compared on equal terms, from a small file to a table and a plot."""
