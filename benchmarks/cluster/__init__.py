# SPDX-License-Identifier: Apache-2.0
"""Several server processes on one PostgreSQL and one S3: what `benchmarks.capacity` measures."""
