# SPDX-License-Identifier: Apache-2.0
"""Plain Flax NNX language models that know nothing of adapters."""
