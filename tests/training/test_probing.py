"""The loss of each example, by hand."""

import jax
import numpy as np
import pytest

from sira_jax.training import probing
from tests import tiny


def test_sum_over_rows_of_means():
  model, batch = tiny.base(), tiny.batch()
  batch["decoder_loss_weights"][2] = 0.0
  batch["decoder_loss_weights"][3] *= 0.5
  features = {n: v for n, v in batch.items() if n in model.FEATURES}
  log_probs = np.asarray(jax.nn.log_softmax(model(**features)))
  wanted = 0.0
  for row in (0, 1, 3):
    at = np.flatnonzero(batch["decoder_loss_weights"][row])
    targets = batch["decoder_target_tokens"][row, at]
    wanted -= log_probs[row, at, targets].mean()
  found = probing.per_example_loss(model, batch)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_packed_rows():
  batch = tiny.batch()
  batch["decoder_segment_ids"] = batch["decoder_target_tokens"]
  with pytest.raises(ValueError, match=r"one example a row.*pack=False"):
    probing.per_example_loss(tiny.base(), batch)
