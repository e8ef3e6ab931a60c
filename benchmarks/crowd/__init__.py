# SPDX-License-Identifier: Apache-2.0
"""Thousands of workers on one machine, cheap enough that the server is what is measured."""
