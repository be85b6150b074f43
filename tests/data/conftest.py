# SPDX-License-Identifier: Apache-2.0
import pytest

from sira_jax.data import mixtures
from tests.data import byte_tokenizer


@pytest.fixture(scope="session")
def vocabulary():
  return byte_tokenizer.vocabulary()


@pytest.fixture(scope="session")
def mixture(vocabulary):
  return mixtures.build(
    vocabulary, languages=("en", "de"), zero_shot=("nl", "ko")
  )
