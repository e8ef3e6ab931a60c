# SPDX-License-Identifier: Apache-2.0
"""The app that Flower runs."""
