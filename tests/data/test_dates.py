# SPDX-License-Identifier: Apache-2.0
import datetime

import pytest

from sira_jax.data import dates, examples, languages

DATE = datetime.date(2028, 3, 3)


@pytest.mark.parametrize(
  ("style", "locale", "text"),
  [
    ("full", "de", "Freitag, 3. März 2028"),
    ("long", "en", "March 3, 2028"),
    ("medium", "fr", "3 mars 2028"),
    ("full", "ru", "пятница, 3 марта 2028 г."),
    ("long", "zh_Hans", "2028年3月3日"),
    ("yMMMEd", "nl", "vr 3 mrt 2028"),
  ],
)
def test_wording(style, locale, text):
  assert dates.write(DATE, style=style, locale=locale) == text


@pytest.mark.parametrize(
  ("language", "text", "iso"),
  [
    ("ar", "الأحد، 1 فبراير 1981", "1981-02-01"),
    ("cs", "3. listopadu 2003", "2003-11-03"),
    ("da", "tors. 11. mar. 1982", "1982-03-11"),
    ("de", "Mittwoch, 4. November 2037", "2037-11-04"),
    ("el", "Τετάρτη 8 Ιανουαρίου 1964", "1964-01-08"),
    ("en", "Wed, Oct 3, 2029", "2029-10-03"),
    ("es", "15 sept 2045", "2045-09-15"),
    ("fi", "pe 1.10.1954", "1954-10-01"),
    ("fr", "29 juil. 1992", "1992-07-29"),
    ("it", "23 mag 1988", "1988-05-23"),
    ("ko", "1993년 12월 17일 (금)", "1993-12-17"),
    ("cy", "8 Meh 1983", "1983-06-08"),
    ("hu", "1974. júl. 22.", "1974-07-22"),
    ("nb", "man. 27. sep. 2049", "2049-09-27"),
    ("nl", "za 24 mei 1980", "1980-05-24"),
    ("pl", "czw., 8 wrz 2011", "2011-09-08"),
    ("pt", "28 de abr. de 1965", "1965-04-28"),
    ("ru", "суббота, 26 января 2002 г.", "2002-01-26"),
    ("sv", "tis 28 aug. 2035", "2035-08-28"),
    ("uk", "вт, 20 серп. 1996 р.", "1996-08-20"),
    ("zh", "1978年10月12日周四", "1978-10-12"),
  ],
)
def test_rows(language, text, iso):
  assert (f"date: {text}\n", iso) in dates.rows(language)["test"]


def test_no_date_is_in_two_splits_of_any_languages():
  found = {split: set() for split in examples.SPLITS}
  for language in languages.LANGUAGES:
    rows = dates.rows(language)
    assert sum(map(len, rows.values())) == dates.SAMPLES
    for split, its_rows in rows.items():
      found[split] |= {row.targets for row in its_rows}
  train, validation, test = found.values()
  assert not train & validation
  assert not train & test
  assert not validation & test


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_each_text_means_one_date(language):
  rows = [row for its in dates.rows(language).values() for row in its]
  assert len({row.inputs for row in rows}) == len(rows)
  for row in rows:
    date = datetime.date.fromisoformat(row.targets)
    assert 1950 <= date.year <= 2050
    assert str(date.year) in row.inputs
    assert row.inputs == f"date: {row.inputs[6:-1].strip()}\n"


def test_the_splits_have_their_shares():
  rows = dates.rows("en")
  assert 1500 < len(rows["train"]) < 1700
  assert 150 < len(rows["validation"]) < 250
  assert 150 < len(rows["test"]) < 250


def test_unknown_language():
  with pytest.raises(ValueError, match=r"'xx'.*Available are: ar, bg"):
    dates.rows("xx")
