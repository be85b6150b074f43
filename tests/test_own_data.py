"""Own data from end to end: README's five lines, and flags alone."""

import json
import pathlib
import re

from ml_collections import config_dict
import pytest

from configs import own_data
from sira_jax import assembly, validation
from sira_jax.data import examples
from tests import tiny_run

ROOT = pathlib.Path(__file__).parents[1]
PATH = r"layers\.\d+\.mlp\.up_proj"
ROWS = [
  {"text": f"It is no. {i}", "label": "yes" if i % 3 else "no"}
  for i in range(40)
]


def write(file, rows):
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def small(config, changes):
  """The config, for a base of two layers."""
  del config.rules.attention
  config.rules.mlp.path = PATH
  settings = {k: v for k, v in tiny_run.SETTINGS.items() if "mixture" not in k}
  config.update_from_flattened_dict(settings | changes)
  return config


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def readme(tmp_path, monkeypatch, base):
  """The config of README's five lines, in a folder with its file."""
  page = (ROOT / "README.md").read_text()
  _, code = re.findall(r"```python\n(.*?)```", page, flags=re.S)
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "reviews.jsonl", ROWS)
  found = {}
  exec(compile(code, "README.md", "exec"), found)
  return small(found["get_config"]("lora"), base)


def test_the_five_lines_of_readme_train(readme, tmp_path, monkeypatch, capsys):
  readme.files.reviews.bad_rows = "skip"
  bad = [{"text": "", "label": "no"}, {"text": "what?", "label": None}]
  write(tmp_path / "reviews.jsonl", [*ROWS[:3], *bad, *ROWS[3:]])
  readme.training.steps, readme.optimizer.warmup_steps = 1, 0
  tiny_run.main(monkeypatch, readme, tmp_path / "run")
  said = capsys.readouterr().out
  assert (
    "reviews from reviews.jsonl: 40 of 42 rows; left out: 1 empty (first: line"
    " 4), 1 null (first: line 5)"
  ) in said
  lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
  predictions = [json.loads(line) for line in lines]
  known = {f"{row['text']}\nIs it good?\n": row["label"] for row in ROWS}
  assert len(predictions) == 2
  for row in predictions:
    assert row["target"] == known[row["prompt"]]
    assert examples.split_of(row["prompt"]) == "test"
    assert set(row["scores"]) == {"exact_match"}
  # The same command once more, but the file is another by now.
  (tmp_path / "run" / "results.json").unlink()
  changed = [*ROWS[:-1], ROWS[-1] | {"label": "maybe"}]
  write(tmp_path / "reviews.jsonl", changed)
  with pytest.raises(SystemExit, match="was begun with other data"):
    tiny_run.main(monkeypatch, readme, tmp_path / "run")
  (tmp_path / "reviews.jsonl").unlink()
  with pytest.raises(
    SystemExit, match=r"reviews.jsonl cannot be read: No such"
  ):
    tiny_run.main(monkeypatch, readme, tmp_path / "run")


def test_a_bad_row_leaves_nothing_behind(readme, tmp_path, monkeypatch):
  write(tmp_path / "reviews.jsonl", [*ROWS, {"txt": "a", "label": "no"}])
  monkeypatch.setattr(assembly.bases, "load", None)  # is not called
  with pytest.raises(SystemExit, match="line 41, field 'text': no such field"):
    tiny_run.main(monkeypatch, readme, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_test_row_that_is_too_long_is_named(readme, tmp_path, monkeypatch):
  long = [row | {"text": row["text"] * 10_000} for row in ROWS]
  write(tmp_path / "train.jsonl", ROWS)
  write(tmp_path / "test.jsonl", long[:1])
  reviews = readme.files.reviews
  del reviews.path
  reviews.train, reviews.test = "train.jsonl", "test.jsonl"
  with pytest.raises(SystemExit, match=r"of reviews in en and begins with 'It"):
    tiny_run.main(monkeypatch, readme, tmp_path / "run")


def test_flags_can_set_every_field_of_own_data():
  config = own_data.get_config("lora")
  fields = config.files.own
  fields.path = "rows.csv"
  fields.labels, fields.metrics = ("yes", "no"), ("accuracy", "matthews")
  validation.check(config)
  again = config_dict.ConfigDict(json.loads(config.to_json()))
  validation.check(again)
  fields.train = "more.csv"
  with pytest.raises(ValueError, match=r"config.files.own: .* either path"):
    validation.check(config)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"mixture.tasks": ("dates",)}, "has own, which config.mixture.tasks does"),
    (
      {"files.own.metrics": ("meteor",)},
      "config.files.own: metrics must be some",
    ),
    ({"files.own.inputs": None}, "config.files.own: inputs cannot be none"),
    (
      {"files.own.colour": "red"},
      "config.files.own has no field colour; it has",
    ),
  ],
)
def test_mistakes(changes, message):
  config = own_data.get_config()
  config.files.own.path = "rows.csv"
  for name, value in changes.items():
    *groups, field = name.split(".")
    group = config
    for one in groups:
      group = group[one]
    with group.ignore_type():
      group[field] = value
  with pytest.raises(ValueError, match=message):
    validation.check(config)
