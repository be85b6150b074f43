"""Makes generation.npz: what Hugging Face's `generate` makes of tiny models.

Run `python tests/golden/make_generation.py` with torch and transformers
installed; the file came from torch 2.13.0 and transformers 5.23.0. It has, of
two models that `make_tiny_t5.py` made, prompts and stop tokens and, by
setting, tokens (-1 after the end) and scores of all beams, each prompt decoded
alone, and the probabilities that the first token after the second prompt is
drawn by.
"""

import collections
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
NEW_TOKENS = 10
LENGTHS = (3, 9, 5, 1)
MODELS = {
  "tiny_llama_sharded": transformers.AutoModelForCausalLM,
  "tiny_t5_gated": transformers.AutoModelForSeq2SeqLM,
}
# All of one width. Name -> beams, length penalty, early stopping.
BEAMS = {
  "plain": (4, 1.0, False),
  "unnormalised": (4, 0.0, False),
  "long": (4, 2.5, False),
  "short": (4, -2.0, False),
  "early": (4, 1.0, True),
}
# Name -> temperature, top k (0 is none), top p (1 is none).
FILTERS = {
  "cold": (0.6, 0, 1.0),
  "k": (1.0, 5, 1.0),
  "p": (1.3, 0, 0.8),
  "both": (2.0, 12, 0.7),
  "one": (1.0, 0, 0.01),
}


def generated(model, prompt, ends, **settings):
  """Tokens without what came before, and the scores of beams."""
  found = model.generate(
    torch.tensor([prompt]),
    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    max_new_tokens=NEW_TOKENS,
    eos_token_id=ends,
    pad_token_id=0,
    return_dict_in_generate=True,
    output_scores=True,
    **settings,
  )
  start = 1 if model.config.is_encoder_decoder else len(prompt)
  rows = np.full((len(found.sequences), NEW_TOKENS), -1, np.int16)
  for row, sequence in zip(rows, found.sequences.tolist(), strict=True):
    for i, token in enumerate(sequence[start:]):
      if token in ends:
        break
      row[i] = token
  return rows, getattr(found, "sequences_scores", None), found.scores


def stop_tokens(model, prompts):
  """Tokens that end some beams and not others: the second and fifth most
  frequent in beams without an end."""
  counts = collections.Counter()
  for prompt in prompts:
    rows, *_ = generated(model, prompt, [-1], num_beams=4, do_sample=False)
    counts.update(rows.ravel().tolist())
  ranked = [token for token, _ in counts.most_common()]
  return [ranked[1], ranked[4]]


def of(name, cls):
  """All there is of one model."""
  model = cls.from_pretrained(FOLDER / name).float().eval()
  random = np.random.default_rng(0)
  prompts = [random.integers(1, 64, n).tolist() for n in LENGTHS]
  ends = stop_tokens(model, prompts)
  found = {"ends": np.array(ends, np.int16)}
  for i, prompt in enumerate(prompts):
    found[f"prompt/{i}"] = np.array(prompt, np.int16)
    found[f"greedy/{i}"] = generated(
      model, prompt, ends, num_beams=1, do_sample=False
    )[0][0]
    for kind, (beams, penalty, early) in BEAMS.items():
      rows, scores, _ = generated(
        model,
        prompt,
        ends,
        num_beams=beams,
        num_return_sequences=beams,
        length_penalty=penalty,
        early_stopping=early,
        do_sample=False,
      )
      found[f"beams/{kind}/{i}"] = rows
      found[f"scores/{kind}/{i}"] = scores.numpy()
    for kind, (temperature, k, p) in FILTERS.items() if i == 1 else ():
      *_, scores = generated(
        model,
        prompt,
        ends,
        do_sample=True,
        temperature=temperature,
        top_k=k,
        top_p=p,
      )
      found[f"filters/{kind}/{i}"] = scores[0][0].softmax(-1).numpy()
  return found


if __name__ == "__main__":
  transformers.logging.set_verbosity_error()
  torch.manual_seed(0)
  arrays = {}
  for name, cls in MODELS.items():
    found = of(name, cls)
    for i in range(len(LENGTHS)):
      best = {kind: found[f"beams/{kind}/{i}"][0].tolist() for kind in BEAMS}
      print(name, i, found[f"greedy/{i}"].tolist(), best)
    arrays |= {f"{name}/{key}": array for key, array in found.items()}
  np.savez_compressed(FOLDER / "generation.npz", **arrays)
