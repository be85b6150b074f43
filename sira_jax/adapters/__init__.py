# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters and their sparse mixtures, in jax and flax alone."""
