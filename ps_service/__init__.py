# SPDX-License-Identifier: Apache-2.0
"""The parameter server: offers rounds, takes updates, combines them. It knows named tensors, never layers."""
