# SPDX-License-Identifier: Apache-2.0
"""Scripts that measure; each prints the table that it is quoted by."""
