# SPDX-License-Identifier: Apache-2.0
"""What each part of SiRA is good for: the quickstart with one thing changed.

    python -m benchmarks.ablations
    python -m benchmarks.ablations --only="sira;k 1;lora" --seeds=0 \\
      -- --config.training.steps=120

Runs train.py for every seed and setting of `SETTINGS`; what follows `--` goes
to all of them. It can be stopped and continued, as `benchmarks.methods`, whose
table it prints, and beside it a paired test: each setting's exact match, minus
SiRA's, on the same examples from the same seeds. p is of a permutation test
over examples that flips the signs of their differences (10,000 times,
two-sided); it says nothing of other seeds or data, and is not corrected for the
number of settings. The training loss tells more at the same cost: a seed's runs
have the same batches, so that it is compared seed by seed.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import statistics

import numpy as np
from scipy import stats

from benchmarks import methods, trials
from benchmarks.trials import Run
from sira_jax import markdown

REFERENCE = "sira"
LAST = 20  # steps, whose training loss is told
_RULES = ("attention", "mlp")


def changed(method: str = "sira", **fields: object) -> tuple[str, ...]:
  """Flags of train.py: a method of the quickstart with other settings."""
  own = [
    f"--config.rules.{rule}.{name}={value}"
    for rule in _RULES
    for name, value in fields.items()
  ]
  return (*methods.flags(method), *own)


# SiRA in the quickstart: 16 experts of rank 4, k 4, expert dropout 0.1, balance
# loss 0.01, no capacity limit, a scale of 16.
SETTINGS: Mapping[str, tuple[str, ...]] = {
  "sira": changed(),
  # The methods that it is compared with, of as many parameters.
  "lora": changed("lora"),
  "molora": changed("molora"),
  "smoe_dropout": changed("smoe_dropout"),
  "adamix": changed("adamix"),
  "sora": changed("sora"),
  "lora_smoe": changed("lora_smoe"),
  # SiRA less an ingredient, or more of it.
  "no balance loss": changed(balance_coefficient=0.0),
  "no expert dropout": changed(expert_dropout=0.0),
  "neither": changed(balance_coefficient=0.0, expert_dropout=0.0),
  "expert dropout 0.5": changed(expert_dropout=0.5),
  "balance loss 0.1": changed(balance_coefficient=0.1),
  "capacity factor 2": changed(capacity_factor=2.0),
  "capacity 16, in order": changed(capacity=16, priority="position"),
  "plain scale": changed(compensate=False),
  # Whose weights sum to 1 and need a scale of k alone.
  "renormalised": changed(renormalise=True, alpha=16.0),
  "frozen router": changed(
    "smoe_dropout", experts=16, first_k=4, k=4, alpha=16.0
  ),
  # One budget, divided otherwise: k experts of rank r, 16 ranks a token.
  "k 1": changed(k=1),
  "k 2": changed(k=2),
  "k 16": changed(k=16),
  "4 experts of rank 16, k 1": changed(experts=4, rank=16, k=1),
  "8 experts of rank 8, k 2": changed(experts=8, rank=8, k=2),
  "32 experts of rank 2, k 8": changed(experts=32, rank=2, k=8),
  # Does more rank help?
  "lora, rank 4": changed("lora", rank=4),
  "lora, rank 16": changed("lora", rank=16),
  "lora, rank 144": changed("lora", rank=144),
  # LoRA-SMoE's mixture with as many experts everywhere: what allocation gives.
  "lora_smoe, uniform": changed(
    k=2,
    alpha=8.0,
    renormalise=True,
    balance_coefficient=0.0,
    expert_dropout=0.0,
  ),
}


def right(run: Run) -> list[tuple[tuple[str, str, str], bool]]:
  """(task, language, prompt) of each example, and whether it was answered."""
  lines = (run.workdir / "predictions.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [
    (
      (row["task"], row["language"], row["prompt"]),
      row["prediction"] == row["target"],
    )
    for row in rows
  ]


def differences(own: Sequence[Run], reference: Sequence[Run]) -> np.ndarray:
  """Of each example, its mean difference in exact match over common seeds.

  Raises:
    ValueError: the runs have not the same examples, or no seed in common.
  """
  others = {run.seed: run for run in reference}
  pairs = [(run, others[run.seed]) for run in own if run.seed in others]
  if not pairs:
    raise ValueError("The settings have no seed in common.")
  rows = []
  for one, two in pairs:
    mine, its = right(one), right(two)
    if [key for key, _ in mine] != [key for key, _ in its]:
      raise ValueError(f"{one.name} and {two.name} have not the same examples.")
    pairs_of = zip(mine, its, strict=True)
    rows.append([float(a) - float(b) for (_, a), (_, b) in pairs_of])
  return np.mean(rows, axis=0)


def last_loss(run: Run) -> float:
  """The mean training loss of the last `LAST` steps, nats a target token."""
  lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
  return statistics.fmean(json.loads(line)["loss"] for line in lines[-LAST:])


def loss_differences(
  own: Sequence[Run], reference: Sequence[Run]
) -> list[float]:
  """`last_loss`, less the reference's, of each seed that both have."""
  others = {run.seed: run for run in reference}
  return [
    last_loss(run) - last_loss(others[run.seed])
    for run in own
    if run.seed in others
  ]


def p_value(values: np.ndarray) -> float:
  """Two-sided, that the mean is 0, by flipping signs; 1 where all are 0."""
  if not values.any():
    return 1.0
  found = stats.permutation_test(
    (values,),
    np.mean,
    permutation_type="samples",
    n_resamples=10_000,
    rng=np.random.default_rng(0),
  )
  return float(found.pvalue)


def comparison(finished: Sequence[Run]) -> str:
  """Markdown: each setting against the reference."""
  by_setting = {}
  for run in finished:
    by_setting.setdefault(run.setting, []).append(run)
  header = [
    "setting",
    f"exact match, all examples, - {REFERENCE}'s",
    "p",
    f"loss of the last {LAST} steps, - {REFERENCE}'s",
  ]
  rows = []
  for name, group in by_setting.items():
    if name == REFERENCE:
      continue
    try:
      found = differences(group, by_setting[REFERENCE])
    except ValueError as error:
      rows.append([name, str(error), "", ""])
      continue
    losses = loss_differences(group, by_setting[REFERENCE])
    scores = f"{100 * found.mean():+.1f}", f"{p_value(found):.3f}"
    rows.append([name, *scores, markdown.spread(losses, 3)])
  return markdown.table(header, rows)


def report(finished: Sequence[Run]) -> str:
  """Both tables."""
  text = methods.report(finished)
  if any(run.setting == REFERENCE for run in finished):
    text += f"\n\n{comparison(finished)}"
  return text


def main() -> None:
  """Reads the command line."""
  parser = trials.options(__doc__)
  parser.add_argument("--only", help=f"some of: {'; '.join(SETTINGS)}")
  parser.set_defaults(out=pathlib.Path("runs/ablations"))
  given = parser.parse_args()
  names = list(SETTINGS)
  if given.only:
    names = [name.strip() for name in given.only.split(";")]
    unknown = sorted(set(names) - set(SETTINGS))
    if unknown:
      parser.error(f"no settings {unknown}; there are: {'; '.join(SETTINGS)}")
  trials.run({name: SETTINGS[name] for name in names}, given, report)


if __name__ == "__main__":
  main()
