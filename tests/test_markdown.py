# SPDX-License-Identifier: Apache-2.0
"""Tables as Markdown."""

from sira_jax import markdown


def test_a_table():
  rows = [["a", "b", "1"], ["c", "", "2"]]
  assert markdown.table(["one", "two", "number"], rows, words=2) == (
    "| one | two | number |\n| --- | --- | ---: |\n| a | b | 1 |\n| c |  | 2 |"
  )


def test_spread():
  assert markdown.spread([]) == ""
  assert markdown.spread([1.25], digits=2) == "1.25"
  assert markdown.spread([1.0, 3.0]) == "2.0 ± 1.4"
