"""What cannot be put together is refused before the first step."""

import pathlib
import shutil

import pytest

from configs import quickstart
from sira_jax import assembly
from tests import tiny_t5


def test_an_encoder_decoder_is_refused(tmp_path):
  folder = tmp_path / "t5"
  shutil.copytree(tiny_t5.GOLDEN / "tiny_t5_relu", folder)
  tiny_t5.word_tokenizer(folder)
  config = quickstart.get_config()
  config.base.uri, config.base.sha256 = str(folder), None
  with pytest.raises(ValueError, match="t5 is an encoder-decoder, and batches"):
    assembly.build(config, pathlib.Path(tmp_path))
