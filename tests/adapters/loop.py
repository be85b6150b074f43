"""The executable definition of a routed mixture: a loop over tokens in numpy.

Written for reading, in float64, with its gradients worked by hand; only what
decides who is chosen follows the library's float32 keys, bit for bit.
"""

import math

import numpy as np


def keys(q):
  """Integers that order as q does; near-ties go to the lower expert."""
  experts = q.shape[-1]
  low = (1 << max(1, (experts - 1).bit_length())) - 1
  bits = np.ascontiguousarray(q, np.float32).view(np.int32)
  return (bits & ~low) | (experts - 1 - np.arange(experts, dtype=np.int32))


def softmax(logits):
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def mixture(
  x, a, b, kernel, *, ids, k, factor=None, keep=None, rate=0.0, scale=1.0
):
  """y, balance loss, and what the backward pass needs.

  ids [batch length]: 0 for padding; equal ids of a row are one example.
  """
  batch, length, _ = x.shape
  experts = b.shape[0]
  p = softmax(x @ kernel)
  q = p if keep is None else np.where(keep, p, 0) / (1 - rate)
  weights = np.zeros_like(q)
  slope = np.zeros_like(q)  # of the balance loss in q
  y = np.zeros((batch, length, b.shape[-1]))
  balances, dropped = [], 0
  for row in range(batch):
    for example in sorted(set(ids[row]) - {0}):
      tokens = [t for t in range(length) if ids[row, t] == example]
      limit = math.inf
      if factor is not None:
        limit = math.ceil(round(factor * k * len(tokens) / experts, 6))
      ranked = {
        t: np.argsort(-keys(np.float32(q[row, t])).astype(np.int64))
        for t in tokens
      }
      count = np.zeros(experts, int)
      for choice in range(k):
        for t in tokens:
          e = ranked[t][choice]
          if q[row, t, e] == 0:
            continue
          if count[e] < limit:
            weights[row, t, e] = q[row, t, e]
          else:
            dropped += 1
          count[e] += 1
      c = count / len(tokens)
      m = q[row, tokens].mean(0)
      balances.append(experts / k * (c * m).sum())
      slope[row, tokens] = experts / k * c / len(tokens)
  for row in range(batch):
    for t in range(length):
      for e in range(experts):
        z = x[row, t] @ a[:, e]
        y[row, t] += scale * weights[row, t, e] * (z @ b[e])
  return (
    y,
    np.mean(balances),
    dict(
      p=p, q=q, weights=weights, slope=slope / len(balances), dropped=dropped
    ),
  )


def gradients(
  x, a, b, kernel, saved, dy, *, coefficient, keep=None, rate=0.0, scale=1.0
):
  """Of sum(y * dy) + coefficient * balance in x, a, b and the router."""
  dx, da = np.zeros_like(x), np.zeros_like(a)
  db, dkernel = np.zeros_like(b), np.zeros_like(kernel)
  for row in range(x.shape[0]):
    for t in range(x.shape[1]):
      dq = coefficient * saved["slope"][row, t].copy()
      for e in range(b.shape[0]):
        w = saved["weights"][row, t, e]
        if w == 0:
          continue
        z = x[row, t] @ a[:, e]
        du = scale * (b[e] @ dy[row, t])
        db[e] += scale * w * np.outer(z, dy[row, t])
        da[:, e] += w * np.outer(x[row, t], du)
        dx[row, t] += w * (a[:, e] @ du)
        dq[e] += z @ du
      p = saved["p"][row, t]
      dp = dq if keep is None else np.where(keep[row, t], dq, 0) / (1 - rate)
      dlogits = p * (dp - (p * dp).sum())
      dkernel += np.outer(x[row, t], dlogits)
      dx[row, t] += kernel @ dlogits
  return dict(x=dx, A=da, B=db, kernel=dkernel)
