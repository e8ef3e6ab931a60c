# SPDX-License-Identifier: Apache-2.0
"""Devices by the million that come and go, and the rounds that the server's machines hold with them."""
