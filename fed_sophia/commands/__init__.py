# SPDX-License-Identifier: Apache-2.0
"""Menu: one command, or one family of commands, a file. A new one gets a line in `menu.py`."""
