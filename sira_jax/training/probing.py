# SPDX-License-Identifier: Apache-2.0
"""The loss whose gradients say how sensitive a base model's weights are."""

from flax import nnx
import jax
import jax.numpy as jnp

from sira_jax.training import losses, step


def per_example_loss(model: nnx.Module, batch: step.Batch) -> jax.Array:
  """The sum over rows of the mean cross-entropy of the row's targets.

  So each example counts the same, however long its answer is; a row without
  targets counts nothing.

  Args:
    model: as for `step.batch_loss`, with a last layer that is not measured.
    batch: as for `step.batch_loss`, unpacked.

  Raises:
    ValueError: the rows are packed, so that a row is not an example.
  """
  if "decoder_segment_ids" in batch:
    raise ValueError(
      "Expected one example a row, got packed rows (decoder_segment_ids)."
      " Make the batches with pack=False."
    )
  features = {name: batch[name] for name in model.FEATURES if name in batch}
  weights = batch["decoder_loss_weights"].astype(jnp.float32)
  targets = weights.sum(axis=1, keepdims=True)
  total, _ = losses.cross_entropy_at_targets(
    model.logits,
    model.hidden(**features),
    targets=batch["decoder_target_tokens"],
    weights=weights / jnp.where(targets == 0, 1.0, targets),
  )
  return total
