"""Likelihoods of choices against the full forward pass, and runs by them."""

import json
import types

from flax import nnx
import jax
import numpy as np
import pytest

from sira_jax import (
  adapted,
  analysis,
  assembly,
  evaluation,
  ranking,
  sharding,
)
from sira_jax.adapters import methods, surgery
from sira_jax.data import cache, examples
from tests import tiny_run, tiny_t5
from tests.test_decoding import make

# Of one token, of several, and of a token that begins another one.
CHOICES = [[5], [5, 9, 1], [7, 1], [11, 12, 13, 14, 1]]
PROMPTS = [
  np.random.default_rng(n).integers(1, 24, n).tolist() for n in (3, 17, 1, 8)
]


def expected(logits, prompts):
  """`logits`: (prompt, choice) -> one for each of the choice's tokens."""
  found = np.zeros((len(prompts), len(CHOICES)))
  for row, prompt in enumerate(prompts):
    for column, choice in enumerate(CHOICES):
      scores = jax.nn.log_softmax(logits(prompt, choice))
      found[row, column] = sum(
        scores[i, token] for i, token in enumerate(choice)
      )
  return found


@nnx.jit
def forward(model, *tokens):
  return model(*tokens)


def padded(ids, length):
  """One shape, so that it compiles once."""
  return np.array([[*ids, *[0] * (length - len(ids))]], np.int32)


def by_decoder(model, prompt, choice):
  # What follows is not seen.
  logits = forward(model, padded([*prompt, *choice[:-1]], 24))
  return logits[0, len(prompt) - 1 :]


def by_t5(model, prompt, choice):
  outputs = padded([0, *choice[:-1]], 6)
  return forward(model, padded(prompt, 24), outputs)[0]


@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_equals_the_full_forward(kind):
  if kind == "decoder":
    model, full = make(0), by_decoder
  else:
    model, full = tiny_t5.golden("tiny_t5_relu")[0], by_t5
  model.eval()
  with jax.transfer_guard("disallow"):
    found = ranking.likelihoods(model, PROMPTS, CHOICES, batch_size=3)
  wanted = expected(lambda *of: full(model, *of), PROMPTS)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
  assert len(set(found.argmax(1))) > 1 or kind == "t5"
  # Whatever else is ranked.
  alone = ranking.likelihoods(model, PROMPTS[:1], CHOICES[2:3], batch_size=1)
  np.testing.assert_allclose(alone, wanted[:1, 2:3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("choices", [[], [[3], []]])
def test_refuses_no_choice(choices):
  with pytest.raises(ValueError, match="Expected choices of a token at least"):
    ranking.likelihoods(make(0), PROMPTS, choices, batch_size=1)


def test_refuses_a_prompt_without_room():
  model = make(0)
  prompt = [1] * (model.max_length - 4)
  with pytest.raises(ValueError, match="tokens"):
    ranking.likelihoods(model, [prompt], CHOICES, batch_size=1)


def test_routers_report_of_what_is_ranked():
  """As of what is decoded, whichever sets are which."""
  model = make(0)
  sira = methods.create("sira", experts=4, rank=2, k=2)
  rule = surgery.Rule(r"layers\.\d+\.mlp\.up_proj", sira)
  surgery.adapt(model, [rule], rngs=nnx.Rngs(1))
  texts = [PROMPTS[:1], PROMPTS[1:3], PROMPTS[3:]]

  def statistics(ranked):
    sets = [
      types.SimpleNamespace(
        task="task",
        language=str(number),
        zero_shot=False,
        inputs=own,
        choices=("a", "b", "c", "d") if number in ranked else (),
        choice_ids=CHOICES,
        targets=("a",) * len(own),
      )
      for number, own in enumerate(texts)
    ]
    recorder = analysis.Recorder(sets)
    _, answers = evaluation.evaluate(
      model,
      sets,
      score=lambda *_: {"score": 0.0},
      text=str,
      eos_id=0,
      max_new_tokens=2,
      batch_size=2,
      record=recorder,
    )
    assert [len(own) for own in answers] == [1, 2, 1]
    return recorder.statistics()

  decoded = statistics(())
  assert len(decoded.sites) == 2
  for ranked in ((0, 1, 2), (1,), (0, 2)):
    found = statistics(ranked)
    assert found.owners.tolist() == decoded.owners.tolist()
    for site, fields in decoded.sites.items():
      for name, values in fields.items():
        np.testing.assert_allclose(found.sites[site][name], values, rtol=1e-4)


ROWS = [
  {"text": f"It is no. {i}", "label": "yes" if i % 3 else "no"}
  for i in range(60)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  return tiny_run.base(tmp_path_factory.mktemp("base"))


def config(base, folder, rows, **evaluation):
  """A run on rows of a file, whose answers are ranked."""
  (folder / "rows.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  found = tiny_run.config("lora", base)
  source = dict(path=str(folder / "rows.jsonl"))
  found.files = dict(reviews=source | dict(inputs="{text}", targets="{label}"))
  found.mixture = dict(tasks=("reviews",), languages=("en",))
  found.evaluation = dict(examples=8, split="test", rank=("reviews",))
  found.evaluation.update(evaluation)
  return found


def test_a_run_that_ranks(base, tmp_path, monkeypatch):
  """Its answers are the likeliest of the two that it is trained on."""
  settings = config(base, tmp_path, ROWS)
  settings.selection = dict(metric="exact_match", examples=4, patience=None)
  tiny_run.main(monkeypatch, settings, tmp_path / "run")
  lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
  answers = [json.loads(line) for line in lines]
  with sharding.use(*tiny_run.layout(settings)):
    found = adapted.restore(settings, tmp_path / "run")
    tokenizer, end = found.base.tokenizer, found.base.eos_id
    ids = [[*tokenizer.encode(text).ids, end] for text in ("no", "yes")]
    scores = ranking.likelihoods(
      found.base.model,
      [[0, *tokenizer.encode(row["prompt"]).ids] for row in answers],
      ids,
      batch_size=8,
    )
  assert [row["prediction"] for row in answers] == [
    ("no", "yes")[index] for index in scores.argmax(axis=1)
  ]
  # Decoded, what is not trained would be anything.
  before = json.loads((tmp_path / "run" / "before.json").read_text())
  assert before[0]["scores"]["exact_match"] > 0


def read(settings):
  return assembly.read(
    assembly.prepare(settings), settings, adapted.outline(settings)
  )


def test_a_cache_has_the_choices(base, tmp_path):
  settings = config(base, tmp_path, ROWS)
  streamed = read(settings)
  assert [one.choices for one in streamed.sets] == [("no", "yes")]
  cache.write(settings, str(tmp_path / "cache"))
  settings.cache.folder = str(tmp_path / "cache")
  assert read(settings).sets == streamed.sets


def test_refusals(base, tmp_path):
  """Of tasks that are not there, have many answers, or others to test."""
  with pytest.raises(
    ValueError, match=r"rank has review, .*There are: reviews"
  ):
    read(config(base, tmp_path, ROWS, rank=("review",)))
  many = [{"text": f"no. {i}", "label": str(i % 101)} for i in range(600)]
  with pytest.raises(ValueError, match=r"101 different targets .* at most 100"):
    read(config(base, tmp_path, many))
  tested = [
    row | {"label": "perhaps"}
    if examples.split_of(row["text"]) == "test"
    else row
    for row in ROWS
  ]
  with pytest.raises(ValueError, match=r"In en there are others .*'perhaps'"):
    read(config(base, tmp_path, tested))
