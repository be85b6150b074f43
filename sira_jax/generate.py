# SPDX-License-Identifier: Apache-2.0
"""Continues prompts with the model of a run, from its newest checkpoint.

    python -m sira_jax.generate --workdir=runs/quickstart "PROMPT" ["PROMPT" ..]
    python -m sira_jax.generate --workdir=... --file=FILE       a prompt a line
    ... | python -m sira_jax.generate --workdir=...             the same

A prompt is given to the model exactly as eval.py gives it. A FILE.jsonl has
objects with a "prompt", as a run's predictions.jsonl does. Neither the data of
the run nor TensorFlow is needed.
"""

from collections.abc import Callable, Sequence
import contextlib
import json
import sys
from typing import Any

from absl import flags, logging
from etils import epath

from sira_jax import (
  adapted,
  beams,
  decoding,
  filters,
  process,
  runs,
  sharding,
  storage,
  texts,
)
from sira_jax import prompts as prompts_lib
from sira_jax.formats import bases

# What each way to decode takes no notice of, and so refuses.
_SAMPLING = ("top_k", "top_p", "seed")
_SEARCHING = ("length_penalty", "early_stopping")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """The command's flags; those that are not given are None."""
  own = {"flag_values": values}
  text, number = flags.DEFINE_string, flags.DEFINE_integer
  text("workdir", "runs/quickstart", "Of the run.", **own)
  text("file", None, "Of prompts, a line each, or .jsonl.", **own)
  flags.DEFINE_boolean(
    "escapes",
    False,
    r"Read \n, \t and \\ in prompts as a newline, a tab and a backslash.",
    **own,
  )
  number("max_new_tokens", None, "Longest answer; else the run's.", **own)
  flags.DEFINE_float(
    "temperature",
    None,
    "Draws tokens, with logits divided by this; 0, the default, takes the most"
    " probable.",
    **own,
  )
  number("top_k", None, "Draws among the k most probable.", **own)
  flags.DEFINE_float(
    "top_p", None, "Draws among the fewest tokens that reach this.", **own
  )
  number("seed", None, "Of the draws; 0 if not given.", **own)
  number("samples", None, "Answers to each prompt, drawn or of beams.", **own)
  number("beams", None, "Searches with so many beams.", **own)
  flags.DEFINE_float(
    "length_penalty",
    None,
    "With --beams: above 0 favours long answers; 1 if not given.",
    **own,
  )
  flags.DEFINE_boolean(
    "early_stopping",
    None,
    "With --beams: end with the first that are finished.",
    **own,
  )
  flags.DEFINE_boolean("json", False, "A JSON object for each answer.", **own)
  for name in ("fsdp", "tensor"):
    meaning = f"Instead of the run's config.mesh.{name}, as for eval.py."
    number(name, None, meaning, **own)


def main(argv: Sequence[str]) -> None:
  """prompts -> config -> model -> answers; a mistake ends with its message."""
  logging.set_verbosity(logging.WARNING)
  given = flags.FLAGS.flag_values_dict()
  process.prepare()
  with process.user_errors():
    check(given)
    workdir = storage.place(given["workdir"])
    config = runs.load_config(workdir)
    if "head" in config:
      raise ValueError(
        f"The run in {workdir} labels texts and writes none; eval.py scores it."
      )
    prompts = read(argv[1:], given["file"], escapes=given["escapes"])
    adapted.check(config)
    if given["max_new_tokens"] is None:
      given["max_new_tokens"] = config.decoding.max_new_tokens
    adapted.lay_out_anew(config, fsdp=given["fsdp"], tensor=given["tensor"])
    mesh, rules = adapted.layout(config)
  # Standard output is for answers.
  with sharding.use(mesh, rules), contextlib.redirect_stdout(sys.stderr):
    with process.user_errors():
      model = adapted.restore(config, workdir)
      inputs = tokens(model.base, prompts, given["max_new_tokens"])
    where = f"stage {model.stage}, " if model.stages > 1 else ""
    print(f"{workdir}, {where}step {model.step}", flush=True)
    found = answers(model.base, inputs, config.decoding.batch_size, given)
  for line in lines(prompts, found, as_json=given["json"]):
    print(line)


def check(given: dict[str, Any]) -> None:
  """Checks the flags.

  Raises:
    ValueError: a number out of range, or flags that exclude each other.
  """
  drawn = bool(given["temperature"])
  for name, least in (
    *(("max_new_tokens", 1), ("samples", 1), ("beams", 1), ("seed", 0)),
    *(("fsdp", 1), ("tensor", 1)),
  ):
    if given[name] is not None and given[name] < least:
      raise ValueError(f"--{name} must be at least {least}: {given[name]}.")
  if (given["seed"] or 0) >= 2**32:
    raise ValueError(f"--seed must be below 2**32: {given['seed']}.")
  if given["beams"] and drawn:
    raise ValueError(
      "--beams searches and --temperature draws: give one of them."
    )
  for names, needed, there in (
    (_SAMPLING, "--temperature above 0", drawn),
    (_SEARCHING, "--beams", given["beams"]),
    (("samples",), "--temperature above 0 or --beams", drawn or given["beams"]),
  ):
    lost = [name for name in names if given[name] is not None]
    if lost and not there:
      raise ValueError(f"--{lost[0]} does nothing without {needed}.")
  if given["beams"] and (given["samples"] or 1) > given["beams"]:
    raise ValueError(
      f"--samples={given['samples']} of --beams={given['beams']}: there are"
      " only as many answers as beams."
    )
  if given["temperature"] is not None and given["temperature"] != 0:
    filters.check(**_filters(given))


def read(
  arguments: Sequence[str], file: str | None, *, escapes: bool
) -> list[str]:
  """The prompts: arguments, else a file's lines, else standard input's.

  Raises:
    ValueError: both are given, none is, one is empty, or a file cannot be
      read.
  """
  if arguments and file is not None:
    raise ValueError("Prompts are arguments or in --file, and not both.")
  if arguments:
    found, where = list(arguments), "prompt {}"
  elif file is not None and file.endswith(".jsonl"):
    where = f"{file}, line {{}}"
    found = [
      _prompt(line, where.format(i))
      for i, line in enumerate(_lines(epath.Path(file).read_text()), 1)
    ]
    escapes = False
  elif file is not None:
    found, where = _lines(epath.Path(file).read_text()), f"{file}, line {{}}"
  else:
    if sys.stdin.isatty():
      print("Prompts, a line each, then Ctrl-D:", file=sys.stderr, flush=True)
    found, where = _lines(sys.stdin.read()), "standard input, line {}"
  if not found:
    raise ValueError("There is no prompt: give arguments, or a line for each.")
  for i, prompt in enumerate(found, 1):
    if not prompt:
      raise ValueError(f"{where.format(i)} is empty: expected a prompt.")
  return [_unescaped(prompt) for prompt in found] if escapes else found


def tokens(
  base: bases.Base, prompts: Sequence[str], max_new_tokens: int
) -> list[list[int]]:
  """What the model reads of each prompt.

  Raises:
    ValueError: a prompt that is too long, or contains padding.
  """
  encoder = adapted.has_encoder(base.model)
  found = [
    texts.prompt(ids, eos_id=base.eos_id, encoder=encoder)
    for ids in texts.encode(base.tokenizer, prompts)
  ]
  prompts_lib.check(
    found, max_length=base.model.max_length, max_new_tokens=max_new_tokens
  )
  return found


def answers(
  base: bases.Base,
  inputs: Sequence[Sequence[int]],
  batch_size: int,
  given: dict[str, Any],
) -> list[list[dict[str, Any]]]:
  """For each prompt its answers: text, tokens and, of a beam, the score."""
  found = _decoder(given)(
    base.model,
    inputs,
    max_new_tokens=given["max_new_tokens"],
    eos_id=base.eos_id,
    batch_size=batch_size,
  )

  def answer(one):
    ids = one.tokens if isinstance(one, beams.Beam) else one
    text = texts.decode(base.tokenizer, ids, eos_id=base.eos_id)
    score = {"score": one.score} if isinstance(one, beams.Beam) else {}
    return {"text": text, "tokens": ids, **score}

  return [[answer(one) for one in several] for several in found]


def lines(
  prompts: Sequence[str],
  found: Sequence[Sequence[dict[str, Any]]],
  *,
  as_json: bool,
) -> list[str]:
  """What is printed: answers, each prompt before its own if there are more."""
  if as_json:
    return [
      json.dumps({"prompt": prompt, "sample": i, **one}, ensure_ascii=False)
      for prompt, several in zip(prompts, found, strict=True)
      for i, one in enumerate(several)
    ]
  alone = len(found) == 1 and len(found[0]) == 1
  printed = []
  for prompt, several in zip(prompts, found, strict=True):
    if not alone:
      printed.append(f"> {json.dumps(prompt, ensure_ascii=False)}")
    printed += [one["text"] for one in several]
  return printed


def _decoder(given) -> Callable[..., list[list[Any]]]:
  """The way to decode that the flags ask for."""
  samples = given["samples"] or 1
  if given["beams"]:
    penalty = given["length_penalty"]

    def search(*args, **options):
      found = beams.search(
        *args,
        beams=given["beams"],
        length_penalty=1.0 if penalty is None else penalty,
        early_stopping=bool(given["early_stopping"]),
        **options,
      )
      return [several[:samples] for several in found]

    return search
  if given["temperature"]:

    def draw(*args, **options):
      return decoding.sample(
        *args,
        samples=samples,
        seed=given["seed"] or 0,
        **_filters(given),
        **options,
      )

    return draw
  return lambda *args, **options: [
    [ids] for ids in decoding.greedy(*args, **options)
  ]


def _filters(given):
  return {name: given[name] for name in ("temperature", "top_k", "top_p")}


def _lines(text):
  # Not splitlines, which also splits at characters that a prompt may have.
  return (
    [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if text
    else []
  )


def _prompt(line, where):
  try:
    found = json.loads(line)["prompt"]
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{where}: expected an object with a "prompt": {error!r}.'
    ) from None
  if not isinstance(found, str):
    raise ValueError(f'{where}: expected a text as "prompt", got {found!r}.')
  return found


def _unescaped(text):
  parts = text.split("\\\\")
  return "\\".join(
    part.replace("\\n", "\n").replace("\\t", "\t") for part in parts
  )


if __name__ == "__main__":
  define_flags()
  process.start(main)
