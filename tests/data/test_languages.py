# SPDX-License-Identifier: Apache-2.0
import babel
import pytest

from sira_jax.data import languages


@pytest.mark.parametrize("code", languages.LANGUAGES)
def test_all_codes_are_of_one_language(code):
  found = languages.get(code)
  assert found.intents.partition("-")[0] == code
  assert babel.Locale.parse(found.locale).language == code
  english = babel.Locale.parse("en").languages[code]
  assert english.startswith(found.name)  # "Norwegian Bokmål"


def test_they_are_in_the_order_of_codes():
  assert list(languages.LANGUAGES) == sorted(languages.LANGUAGES)
  assert len(languages.LANGUAGES) == 38
