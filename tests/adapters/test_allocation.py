"""Votes and budgets worked by hand, and every allocation tried out."""

import itertools
import json
import math

from flax import nnx
import numpy as np
import pytest

from sira_jax.adapters import allocation, methods, surgery
from tests import tiny

# Two layers of q, v (attention) and up (mlp).
SITES = [
  f"layers.{layer}.{module}"
  for layer in (0, 1)
  for module in ("self_attn.q", "self_attn.v", "mlp.up")
]


def scores(**tasks):
  return {
    task: dict(zip(SITES, map(float, values), strict=True))
    for task, values in tasks.items()
  }


# q0 v0 up0 q1 v1 up1
BOTH = scores(one=(1, 2, 30, 3, 4, 10), two=(5, 8, 10, 1, 9, 20))


@pytest.mark.parametrize(
  "group, percentile, expected",
  [
    # The median of two is between them: one vote in each pair and task.
    # one: q1 v1 up0; two: q0 v1 up1.
    ("module", 50, (1, 0, 1, 1, 2, 1)),
    # Attention of one: 1 2 3 4, median 2.5: q1 v1; of two: 1 5 8 9, median
    # 6.5: v0 v1. up as before.
    ("block", 50, (0, 1, 1, 1, 2, 1)),
    # one: 1 2 3 4 10 30, median 3.5: v1 up0 up1; two: 1 5 8 9 10 20, median
    # 8.5: up0 v1 up1.
    ("all", 50, (0, 0, 2, 0, 2, 2)),
    # The lowest is not above itself.
    ("all", 0, (1, 2, 2, 1, 2, 2)),
    ("all", 100, (0, 0, 0, 0, 0, 0)),
    # numpy's linear rule: 0.8 * 5 = 4, the fifth of six.
    ("all", 80, (0, 0, 1, 0, 0, 1)),
  ],
)
def test_vote(group, percentile, expected):
  counts = allocation.vote(BOTH, percentile=percentile, group=group)
  assert list(counts.items()) == list(zip(SITES, expected, strict=True))


def attention(layers):
  return [
    f"layers.{layer}.self_attn.{module}_proj"
    for layer in range(layers)
    for module in "qkvo"
  ]


@pytest.mark.parametrize(
  "group, kept",
  [
    # Of 144 the percentile is at 0.4 * 143 = 57.2: 86 are above.
    ("block", 86),
    # Of 36 at 0.4 * 35 = 14, which is a score itself: 21 are above, 4 times.
    ("module", 84),
  ],
)
def test_total_of_the_official_example(group, kept):
  """LoRA-SMoE's own file has 688 = 8 x 86 experts at 36 layers' attention."""
  rng = np.random.default_rng(0)
  sites = attention(36)
  found = {
    f"task {n}": dict(zip(sites, rng.permutation(144) + 1.0, strict=True))
    for n in range(8)
  }
  counts = allocation.vote(found, percentile=40, group=group)
  assert sum(counts.values()) == 8 * kept
  assert (8 * kept == 688) == (group == "block")


def test_counts_of_the_official_example():
  """Votes of 8 tasks can give its counts; the scores are made up here."""
  histogram = {8: 51, 7: 17, 6: 10, 5: 6, 4: 7, 3: 7, 2: 7, 1: 8, 0: 31}
  wanted = [n for n, sites in histogram.items() for _ in range(sites)]
  assert len(wanted) == 144 and sum(wanted) == 688
  order = np.random.default_rng(0).permutation(144)
  expected = {
    site: wanted[i] for site, i in zip(attention(36), order, strict=True)
  }
  # Each site's votes come from the tasks that follow the last site's.
  found = {task: {} for task in range(8)}
  task = 0
  for height, (site, votes) in enumerate(expected.items()):
    voters = [(task + i) % 8 for i in range(votes)]
    task += votes
    for one in range(8):
      found[one][site] = height + 1.0 + 1000 * (one in voters)
  assert allocation.vote(found, percentile=40, group="block") == expected


def test_apportionment():
  """D'Hondt by hand: one task and group, worths in proportion 6, 3, 1."""
  one = {"task": {"a.x": 60.0, "b.x": 30.0, "c.x": 10.0}}
  # Bids: a 60 30 20 15 12, b 30 15 10, c 10.
  assert allocation.allocate(one, budget=4, maximum=8) == {
    "a.x": 3, "b.x": 1, "c.x": 0,
  }  # fmt: skip
  assert allocation.allocate(one, budget=6, maximum=8) == {
    "a.x": 4, "b.x": 2, "c.x": 0,
  }  # fmt: skip
  # A fourth of a and a second of b tie for the fifth place, at 15.
  assert allocation.allocate(one, budget=5, maximum=8)["b.x"] == 2
  # So do, at 10, a third of b and a first of c for the seventh.
  assert allocation.allocate(one, budget=7, maximum=4)["c.x"] == 1
  assert allocation.allocate(one, budget=6, maximum=3) == {
    "a.x": 3, "b.x": 2, "c.x": 1,
  }  # fmt: skip
  # Of each there is one; 30 and 20 of a are next.
  assert allocation.allocate(one, budget=5, maximum=8, minimum=1) == {
    "a.x": 3,
    "b.x": 1,
    "c.x": 1,
  }


def test_equal_worths():
  """Everyone's first expert before anyone's second, in the model's order."""
  counts = allocation.allocate(
    {"task": dict.fromkeys(SITES, 1.0)}, budget=8, maximum=3
  )
  assert list(counts.values()) == [2, 2, 1, 1, 1, 1]


def test_worth_is_relative_to_task_and_group():
  """A task's, and a module's, larger numbers buy no more."""
  # Means: one: q 2, v 3, up 20; two: q 3, v 8.5, up 15. Worths:
  # q0 (1/2 + 5/3)/2 = 1.08, q1 (3/2 + 1/3)/2 = 0.92
  # v0 (2/3 + 8/8.5)/2 = 0.80, v1 1.20
  # up0 (30/20 + 10/15)/2 = 1.08, up1 (10/20 + 20/15)/2 = 0.92
  counts = allocation.allocate(BOTH, budget=3, maximum=1)
  assert list(counts.values()) == [1, 0, 1, 0, 1, 0]
  scaled = {
    task: {
      site: value * (1000 if task == "two" else 1) * (7 if "up" in site else 1)
      for site, value in own.items()
    }
    for task, own in BOTH.items()
  }
  for budget in range(1, 12):
    assert allocation.allocate(
      scaled, budget=budget, maximum=2
    ) == allocation.allocate(BOTH, budget=budget, maximum=2)


def test_a_group_without_sensitivity():
  zero = scores(one=(0, 2, 0, 0, 4, 0))
  counts = allocation.allocate(zero, budget=3, maximum=2)
  assert list(counts.values()) == [0, 1, 0, 0, 2, 0]


def worth(values, counts):
  return sum(
    value / n
    for value, count in zip(values, counts, strict=True)
    for n in range(1, count + 1)
  )


@pytest.mark.parametrize("seed", range(6))
def test_parameters(seed):
  """Of all allocations that meet the budget, none is worth more."""
  rng = np.random.default_rng(seed)
  sites = ["a.x", "b.x", "c.x", "d.x", "e.x"]
  values = rng.uniform(0.1, 5, 5)
  values /= values.mean()
  prices = rng.choice([6, 9, 15], 5).tolist()
  minimum = seed % 2
  every = list(itertools.product(range(minimum, 4), repeat=5))
  cost = dict(zip(sites, prices, strict=True))
  spent = {
    counts: sum(n * p for n, p in zip(counts, prices, strict=True))
    for counts in every
  }
  found = {"task": dict(zip(sites, values.tolist(), strict=True))}
  for budget in sorted(set(spent.values())):
    counts = allocation.allocate(
      found, budget=budget, minimum=minimum, maximum=3, cost=cost
    )
    assert sum(n * cost[site] for site, n in counts.items()) == budget
    best = max(worth(values, c) for c in every if spent[c] == budget)
    assert worth(values, counts.values()) == pytest.approx(best, rel=1e-12)


COST = dict(zip(SITES, (4, 4, 6, 4, 4, 6), strict=True))


@pytest.mark.parametrize(
  "settings, message",
  [
    # Half of 13 is no whole number of units of 2.
    (dict(budget=13, cost=COST), r"from 0 to 56; the nearest are \[12, 14\]"),
    (dict(budget=2, cost=COST), r"the nearest are \[0, 4\]"),
    (dict(budget=54, cost=COST), r"the nearest are \[52, 56\]"),
    (dict(budget=58, cost=COST), r"the nearest are \[56\]"),
    (dict(budget=27, minimum=1, cost=COST), r"from 28 to 56.*are \[28\]"),
    (dict(budget=5, minimum=1), r"from 6 to 12; the nearest are \[6\]"),
    (dict(budget=13), r"from 0 to 12; the nearest are \[12\]"),
    (dict(budget=-1), r"the nearest are \[0\]"),
    (dict(budget=10**12), r"the nearest are \[12\]"),
    (dict(budget=7, minimum=1, maximum=1), r"from 6 to 6; .* \[6\]"),
    (dict(budget=1, minimum=3), "0 <= minimum <= maximum, got minimum=3"),
    (dict(budget=1, group="row"), r"Unknown group 'row'.*'all', 'block'"),
    (
      dict(budget=8, cost={SITES[0]: 1}),
      "not for 5 of 6, such as 'layers.0.self_attn.v'",
    ),
  ],
)
def test_impossible_budgets(settings, message):
  with pytest.raises(ValueError, match=message):
    allocation.allocate(BOTH, **{"maximum": 2, **settings})


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({}, "at least one task"),
    ({"one": {}}, "some sites, got none in 'one'"),
    (
      {"one": {"a": 1.0, "b": 1.0}, "two": {"a": 1.0}},
      "'two' and 'one' differ in 1, such as 'b'",
    ),
    ({"one": {"a": 1.0, "b": math.nan}}, "got nan for 'b' in 'one'"),
    ({"one": {"a": -1.0}}, "got -1.0 for 'a' in 'one'"),
  ],
)
def test_scores_that_cannot_be_compared(wrong, message):
  with pytest.raises(ValueError, match=message):
    allocation.vote(wrong, percentile=40)
  with pytest.raises(ValueError, match=message):
    allocation.allocate(wrong, budget=1, maximum=1)


def test_vote_refuses():
  with pytest.raises(ValueError, match="within 0 and 100, got 101"):
    allocation.vote(BOTH, percentile=101)
  with pytest.raises(ValueError, match="Unknown group"):
    allocation.vote(BOTH, percentile=40, group="row")


COUNTS = dict(zip(SITES, (8, 0, 2, 12, 1, 0), strict=True))


def test_save_and_load(tmp_path):
  file = tmp_path / "experts.json"
  file.write_text(allocation.dumps(COUNTS))
  loaded = allocation.load(file)
  assert list(loaded.items()) == list(COUNTS.items())


@pytest.mark.parametrize(
  "text", ["nothing", "[1]", '{"a": "1"}', '{"a": -1}', '{"a": 1.5}']
)
def test_load_refuses(text, tmp_path):
  (tmp_path / "experts.json").write_text(text)
  with pytest.raises(ValueError, match=r"experts\.json"):
    allocation.load(tmp_path / "experts.json")


def test_official_names(tmp_path):
  official = allocation.to_official(COUNTS)
  assert official == {
    "model.layers.0.self_attn.q": 8,
    "model.layers.0.mlp.up": 2,
    "model.layers.1.self_attn.q": 12,
    "model.layers.1.self_attn.v": 1,
  }
  assert json.loads(allocation.dumps(official)) == official
  back = allocation.from_official(official, sites=SITES)
  assert list(back.items()) == list(COUNTS.items())
  with pytest.raises(ValueError, match=r"2 of the file's 4 names.*layers\.1"):
    allocation.from_official(official, sites=SITES[:3])


def test_rules():
  """Each site gets the experts of its count and is found by its whole path."""
  model = tiny.base()
  paths = [f"layers.{n}.mlp.{m}_proj" for n in (0, 1) for m in ("up", "down")]
  counts = dict(zip(paths, (2, 0, 4, 2), strict=True))
  factory = lambda experts: methods.sira(experts=experts, k=1, rank=1)  # noqa: E731
  rules = allocation.rules(counts, factory)
  assert [rule.factory.experts for rule in rules] == [2, 4]
  sites = surgery.adapt(model, rules, rngs=nnx.Rngs(0))
  assert {site.path: site.factory.experts for site in sites} == {
    path: count for path, count in counts.items() if count
  }
  # A point stands for itself alone.
  assert allocation.rules({"a.b": 1}, factory)[0].path == r"a\.b"
  assert allocation.rules({"a.b": 0}, factory) == ()


def test_table():
  assert allocation.table(COUNTS) == (
    "           q  v  up  sum\n"
    "layers.0   8  0   2   10\n"
    "layers.1  12  1   0   13\n"
    "sum       20  1   2   23"
  )


def test_table_of_other_models():
  """Equal names in a layer are told apart; a site outside has its own row."""
  counts = {
    "encoder.block.0.layer.0.self.q": 1,
    "decoder.block.0.layer.0.self.q": 2,
    "decoder.block.0.layer.1.cross.q": 3,
    "head": 4,
  }
  assert allocation.table(counts) == (
    "                 layer.0.self.q  layer.1.cross.q  head  sum\n"
    "encoder.block.0               1                -     -    1\n"
    "decoder.block.0               2                3     -    5\n"
    "                              -                -     4    4\n"
    "sum                           3                3     4   10"
  )
