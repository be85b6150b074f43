# SPDX-License-Identifier: Apache-2.0
import pytest

from sira_jax.data import examples, languages, names


@pytest.mark.parametrize(
  ("language", "name", "english"),
  [
    ("de", "Deutschland", "Germany"),
    ("hu", "Németország", "Germany"),
    ("lt", "Vokietija", "Germany"),
    ("cs", "čeština", "Czech"),
    ("zh", "爱沙尼亚语", "Estonian"),
    ("cy", "Cymraeg", "Welsh"),
    ("en", "Yemen", "Yemen"),
  ],
)
def test_rows(language, name, english):
  split = examples.split_of(english)
  assert (f"name: {name}\n", english) in names.rows(language)[split]


def test_nothing_is_in_two_splits_of_any_languages():
  found = {split: set() for split in examples.SPLITS}
  for language in languages.LANGUAGES:
    rows = names.rows(language)
    assert len(rows["train"]) > 600
    assert len(rows["validation"]) > 50 and len(rows["test"]) > 50
    for split, its_rows in rows.items():
      found[split] |= {row.targets for row in its_rows}
  train, validation, test = found.values()
  assert not train & validation and not train & test and not validation & test


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_each_name_has_one_answer(language):
  rows = [row for its in names.rows(language).values() for row in its]
  assert len({row.inputs.casefold() for row in rows}) == len(rows)
  for row in rows:
    assert row.inputs == f"name: {' '.join(row.inputs[6:].split())}\n"
    assert row.targets == " ".join(row.targets.split())


@pytest.mark.parametrize(
  ("language", "name"), [("es", "caribe"), ("de", "fidschi"), ("en", "nauru")]
)
def test_a_name_of_several_is_left_out(language, name):
  """Of the Caribbean and Carib, of Fiji and Fijian, of a place and a tongue."""
  own = names._names(language)
  assert [one.casefold() for one in own.values()].count(name) == 2
  for rows in names.rows(language).values():
    assert f"name: {name}\n" not in {row.inputs.casefold() for row in rows}


def test_unknown_language():
  with pytest.raises(ValueError, match=r"'xx'.*Available are: ar, bg"):
    names.rows("xx")
