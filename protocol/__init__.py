# SPDX-License-Identifier: Apache-2.0
"""What the parameter server and a worker both say.

No network, no files, no clock and no torch: numpy, msgpack and pydantic only.
"""
