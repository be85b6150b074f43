# SPDX-License-Identifier: Apache-2.0
"""Data that were written once, read without TensorFlow."""
