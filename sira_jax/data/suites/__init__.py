# SPDX-License-Identifier: Apache-2.0
"""The suites of the papers, as tasks of the files that they are released in."""
