# SPDX-License-Identifier: Apache-2.0
import pytest

from sira_jax import lengths as lengths_lib
from sira_jax.data import examples, lengths, mixtures, tasks

ROWS = {
  "train": (
    examples.Example("ab\n", "cde"),
    examples.Example("a\n", "c"),
    examples.Example("abcdef\n", "ccc"),
  ),
  "validation": (examples.Example("b\n", "c"),),
  "test": (examples.Example("c\n", "c"),),
}


@pytest.fixture
def letters(vocabulary, monkeypatch):
  definition = tasks.Definition(lambda language: ROWS, (), ("en",))
  monkeypatch.setitem(tasks.TASKS, "letters", definition)
  return mixtures.build(vocabulary, tasks=("letters",), languages=("en",))


def test_report_by_hand(letters):
  # With the target's end: 3 + 4, 2 + 2 and 7 + 4 tokens.
  (row,) = lengths.report(letters, length=7)
  assert row == lengths_lib.Row(
    task="letters",
    language="en",
    examples=3,
    rate=1.0,
    inputs=4.0,
    targets=pytest.approx(10 / 3),
    longest=11,
    too_long=1,
  )
  assert lengths_lib.table((row,)).splitlines()[1].split() == [
    *("letters", "en", "3", "100.0%", "4.0", "3.3", "11", "1")
  ]


def test_the_table_has_room_for_long_names(letters):
  (row,) = lengths.report(letters, length=7)
  long = row._replace(task="section_of_package", language="sr-Latn")
  lines = lengths_lib.table((row, long)).splitlines()
  assert lines[2].split()[:2] == ["section_of_package", "sr-Latn"]
  assert len({len(line) for line in lines}) == 1


def test_too_long_is_an_error_with_two_ways_out(letters):
  lengths.check(letters, length=11)
  with pytest.raises(ValueError) as caught:
    lengths.check(letters, length=6)
  message = str(caught.value)
  assert "letters in en: 2 of 3, the longest has 11 tokens" in message
  assert "length to 11 or more" in message
  assert 'too_long="skip"' in message


def test_skipping_everything_is_an_error(letters):
  lengths.check(letters, length=4, too_long="skip")
  with pytest.raises(ValueError, match="No example of letters in en has"):
    lengths.check(letters, length=3, too_long="skip")


def test_unknown_choice(letters):
  with pytest.raises(ValueError, match=r"'cut'\. Available are: error, skip"):
    lengths.check(letters, length=99, too_long="cut")
