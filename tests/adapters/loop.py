"""The executable definition of a routed mixture: a loop over tokens in numpy.

Written for reading, in float64, with its gradients worked by hand; only what
decides who is chosen follows the library's float32 keys, bit for bit.
"""

import math

import numpy as np

BEND = math.sqrt(2 / math.pi)


def gelu(z):
  return z * (1 + np.tanh(BEND * (z + 0.044715 * z**3))) / 2


def gelu_slope(z):
  t = np.tanh(BEND * (z + 0.044715 * z**3))
  return (1 + t + z * (1 - t**2) * BEND * (1 + 3 * 0.044715 * z**2)) / 2


# Each with its derivative.
ACTIVATIONS = {
  "identity": (lambda z: z, np.ones_like),
  "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(float)),
  "gelu": (gelu, gelu_slope),
}


def keys(q):
  """Integers that order as q does; near-ties go to the lower expert."""
  experts = q.shape[-1]
  low = (1 << max(1, (experts - 1).bit_length())) - 1
  bits = np.ascontiguousarray(q, np.float32).view(np.int32)
  return (bits & ~low) | (experts - 1 - np.arange(experts, dtype=np.int32))


def softmax(logits):
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def examples(ids):
  """(row, tokens) of each; 0 is padding, equal ids of a row one example."""
  for row in range(len(ids)):
    for example in sorted(set(ids[row]) - {0}):
      yield row, [t for t in range(len(ids[row])) if ids[row][t] == example]


def means(x, ids):
  """x with the mean of its example in each token's place."""
  found = np.zeros_like(x)
  for row, tokens in examples(ids):
    found[row, tokens] = x[row, tokens].mean(0)
  return found


def places(settings, tokens, experts):
  if settings.capacity is not None:
    return settings.capacity
  if settings.capacity_factor is None:
    return math.inf
  factor = settings.capacity_factor
  return math.ceil(round(factor * settings.k * tokens / experts, 6))


def queue(q, settings):
  """An example's (token, expert) choices in the order they are served."""
  ranked = [np.argsort(-keys(row).astype(np.int64)) for row in q]
  ranked = [
    [e for e in ranked[t][: settings.k] if q[t, e] > 0] for t in range(len(q))
  ]
  tokens = range(len(q))
  if settings.priority == "position":
    return [(t, e) for t in tokens for e in ranked[t]]
  if settings.priority == "probability":
    tokens = sorted(tokens, key=lambda t: -np.float32(q[t].max()))
  return [
    (t, ranked[t][choice])
    for choice in range(settings.k)
    for t in tokens
    if choice < len(ranked[t])
  ]


def served(q, settings):
  """chosen and served [tokens experts] of one example."""
  chosen, taken = np.zeros(q.shape, bool), np.zeros(q.shape, bool)
  limit = places(settings, *q.shape)
  for t, e in queue(q, settings):
    chosen[t, e] = True
    taken[t, e] = taken[:, e].sum() < limit
  return chosen, taken


def route(logits, settings, *, ids, keep=None):
  """The routing, its losses, and what the backward pass needs, by name."""
  p = softmax(logits)
  rate = settings.expert_dropout
  q = p if keep is None else np.where(keep, p, 0) / (1 - rate)
  chosen, taken = np.zeros(q.shape, bool), np.zeros(q.shape, bool)
  share = np.zeros(q.shape[:2])  # of a token in the mean over examples
  everyone = list(examples(ids))
  for row, tokens in everyone:
    chosen[row, tokens], taken[row, tokens] = served(q[row, tokens], settings)
    share[row, tokens] = 1 / len(tokens) / len(everyone)
  load = np.zeros_like(q)  # c / S of each token's example
  for row, tokens in everyone:
    counted = taken if settings.balance_served else chosen
    load[row, tokens] = counted[row, tokens].mean(0)
  if settings.level == "example":
    load[:] = (share[..., None] * chosen).sum((0, 1))
  slope = q.shape[-1] / settings.k * share[..., None] * load
  sums = np.ones(q.shape[:2])
  if settings.renormalise:
    sums = np.where(chosen, q, 0).sum(-1)
  sums = np.where(sums == 0, 1, sums)[..., None]
  lse = np.log(np.exp(logits).sum(-1))
  balance, z = (slope * q).sum(), (share * lse**2).sum()
  return dict(
    weights=np.where(taken, q, 0) / sums,
    balance=balance,
    penalty=settings.balance_coefficient * balance + settings.z_coefficient * z,
    dropped=(chosen & ~taken).sum(),
    chosen=chosen,
    taken=taken,
    p=p,
    sums=sums,
    slope=slope,
    lse=lse,
    share=share,
  )


def mixture(arrays, settings, *, ids, keep=None, activation, scale):
  """(y, the routing, gradients by name) of arrays x, A, B, g and kernel.

  The gradients are of sum(y * dy) + penalty. g may be None, for ones.
  """
  x, a, b, dy = (arrays[name] for name in ("x", "A", "B", "dy"))
  by_example = settings.level == "example"
  read = means(x, ids) if by_example else x
  routing = route(read @ arrays["kernel"], settings, ids=ids, keep=keep)
  g = np.ones(b.shape[:2]) if arrays["g"] is None else arrays["g"]
  act, act_slope = ACTIVATIONS[activation]
  y, dweights = np.zeros_like(dy), np.zeros_like(routing["weights"])
  dx, da, db, dg = (np.zeros_like(value) for value in (x, a, b, g))
  for row, t, e in np.argwhere(routing["taken"]):
    w = scale * routing["weights"][row, t, e]
    z = x[row, t] @ a[:, e]
    h = act(z)
    y[row, t] += w * (h * g[e]) @ b[e]
    u = b[e] @ dy[row, t]
    dweights[row, t, e] = scale * (h * g[e]) @ u
    db[e] += w * np.outer(h * g[e], dy[row, t])
    dg[e] += w * h * u
    dz = w * g[e] * u * act_slope(z)
    da[:, e] += np.outer(x[row, t], dz)
    dx[row, t] += a[:, e] @ dz
  dlogits = router_gradient(routing, dweights, settings, keep=keep)
  dread = dlogits @ arrays["kernel"].T
  if by_example:
    # Each token is an equal part of the mean that all of them read; the
    # gradient of padding, which reads nothing, is zero.
    for row, tokens in examples(ids):
      dread[row, tokens] = dread[row, tokens].mean(0)
  dkernel = np.einsum("btd,bte->de", read, dlogits)
  wanted = dict(x=dx + dread, A=da, B=db, g=dg, kernel=dkernel)
  return y, routing, wanted


def router_gradient(routing, dweights, settings, *, keep=None):
  """Of the weights and the penalty, in the logits."""
  dq = np.where(routing["taken"], dweights / routing["sums"], 0)
  if settings.renormalise:
    # w = q / s: every chosen q, served or not, is a part of s.
    part = (dweights * routing["weights"]).sum(-1, keepdims=True)
    dq -= np.where(routing["chosen"], part / routing["sums"], 0)
  dq += settings.balance_coefficient * routing["slope"]
  if keep is not None:
    dq = np.where(keep, dq, 0) / (1 - settings.expert_dropout)
  p = routing["p"]
  dlogits = p * (dq - (p * dq).sum(-1, keepdims=True))
  lse = settings.z_coefficient * 2 * routing["share"] * routing["lse"]
  return dlogits + lse[..., None] * p
