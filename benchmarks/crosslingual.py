# SPDX-License-Identifier: Apache-2.0
"""How far what was learned in English, or in five languages, goes in others.

    python -m benchmarks.crosslingual --task=intents
    python -m benchmarks.crosslingual --task=debian --picture=debian.png \\
      -- --config.base.uri=FOLDER

Trains LoRA, MoLoRA and SiRA of one number of parameters on English and on five
languages, from every seed, and tests in all of `configs.crosslingual`; what
follows `--` goes to train.py. The data are written once, as caches in OUT. What
a run prints is in OUT/SETTING/SEED.log. Stop it whenever you like: the same
command continues. Prints a table of means and standard deviations over seeds,
one of every language, and draws it with --picture.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import statistics
import subprocess
import sys

from benchmarks import trials
from benchmarks.trials import Run
from configs import crosslingual
from sira_jax import markdown

FIVE = ("en", "de", "fr", "es", "ru")
METRICS = ("accuracy", "macro_f1")


def settings(task: str, out: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """Name -> flags of train.py, of every method on one language and on five."""
  found = {}
  for trained in (("en",), FIVE):
    others = [x for x in crosslingual.LANGUAGES[task] if x not in trained]
    for method in crosslingual.SETTINGS:
      found[f"{method} on {len(trained)}"] = (
        f"--config=configs/crosslingual.py:{task}_{method}",
        f"--config.mixture.languages={trained!r}",
        f"--config.mixture.zero_shot={tuple(others)!r}",
        f"--config.cache.folder={(out / f'data_{len(trained)}').absolute()}",
      )
  return found


def write_data(flags: Sequence[str], arguments: Sequence[str]) -> None:
  """Writes the cache that a setting reads, if it is not there yet."""
  folder = flags[-1].partition("=")[2]
  if not pathlib.Path(folder).exists():
    command = [sys.executable, "-m", "sira_jax.data.cache", *flags, *arguments]
    subprocess.run([*command, f"--out={folder}"], cwd=trials.ROOT, check=True)


def scores(run: Run) -> dict[str, Mapping[str, float]]:
  """Language -> metric -> percent, after training."""
  results = json.loads((run.workdir / "results.json").read_text())
  return {one["language"]: one["after"] for one in results}


def by_setting(finished: Sequence[Run]) -> dict[str, list[Run]]:
  """Setting -> its runs."""
  found: dict[str, list[Run]] = {}
  for run in finished:
    found.setdefault(run.setting, []).append(run)
  return found


def table(finished: Sequence[Run]) -> str:
  """Markdown: a row a setting; means over trained and over other languages."""
  header = ["method, languages trained on", "seeds"]
  header += [f"{m}, {kind}" for kind in ("trained", "others") for m in METRICS]
  rows = []
  for name, runs in by_setting(finished).items():
    row = [name.replace(" on ", ", "), str(len(runs))]
    for zero_shot in (False, True):
      for metric in METRICS:
        row.append(
          markdown.spread([_mean(run, metric, zero_shot) for run in runs])
        )
    rows.append(row)
  return markdown.table(header, rows)


def languages(finished: Sequence[Run]) -> str:
  """Markdown: a row a language, a column a setting; mean accuracy over seeds.

  In brackets where the language was trained on.
  """
  groups = by_setting(finished)
  rows = []
  means = {name: accuracies(runs) for name, runs in groups.items()}
  trained = {name: _trained(runs[0]) for name, runs in groups.items()}
  for language in next(iter(means.values())):
    row = [language]
    for name, found in means.items():
      value = f"{found[language]:.1f}"
      row.append(f"({value})" if language in trained[name] else value)
    rows.append(row)
  return markdown.table(["accuracy", *groups], rows)


def accuracies(runs: Sequence[Run]) -> dict[str, float]:
  """Language -> the mean over seeds, in the order of codes."""
  found = [scores(run) for run in runs]
  return {
    language: statistics.fmean(one[language]["accuracy"] for one in found)
    for language in sorted(found[0])
  }


def draw(finished: Sequence[Run], file: pathlib.Path) -> None:
  """A picture of `languages`: a mark for each language and setting."""
  from matplotlib import figure

  groups = by_setting(finished)
  canvas = figure.Figure(figsize=(11, 4), layout="constrained")
  axis = canvas.subplots()
  for number, (name, runs) in enumerate(groups.items()):
    found = accuracies(runs)
    axis.plot(
      list(found),
      list(found.values()),
      "os^"[number % len(crosslingual.SETTINGS)],
      color=f"C{number}",
      fillstyle="none" if number < len(crosslingual.SETTINGS) else "full",
      label=name.replace(" on ", ", trained on "),
    )
  axis.set_xlabel("language tested")
  axis.set_ylabel("accuracy, percent, mean over seeds")
  axis.grid(axis="y", alpha=0.3)
  axis.legend(fontsize=8, ncols=2)
  canvas.savefig(file, dpi=130)


def _trained(run):
  results = json.loads((run.workdir / "results.json").read_text())
  return {one["language"] for one in results if not one["zero_shot"]}


def _mean(run, metric, zero_shot):
  found, trained = scores(run), _trained(run)
  return statistics.fmean(
    one[metric]
    for language, one in found.items()
    if (language not in trained) == zero_shot
  )


def report(finished: Sequence[Run]) -> str:
  """Both tables."""
  return f"{table(finished)}\n\n{languages(finished)}"


def main() -> None:
  """Reads the command line."""
  parser = trials.options(__doc__)
  parser.add_argument(
    "--task", choices=list(crosslingual.LANGUAGES), default="intents"
  )
  parser.add_argument("--picture", type=pathlib.Path, help="a file to draw")
  given = parser.parse_args()
  given.out = given.out or pathlib.Path(f"runs/crosslingual_{given.task}")

  def told(finished):
    if given.picture:
      draw(finished, given.picture)
    return report(finished)

  found = settings(given.task, given.out)
  for flags in found.values():
    write_data(flags, given.arguments)
  trials.run(found, given, told)


if __name__ == "__main__":
  main()
