# SPDX-License-Identifier: Apache-2.0
"""Other people's file layouts, read strictly."""
