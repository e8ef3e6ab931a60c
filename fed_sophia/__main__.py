# SPDX-License-Identifier: Apache-2.0
"""`python -m fed_sophia` is the command `fed-sophia`."""

from fed_sophia.cli import main

main()
