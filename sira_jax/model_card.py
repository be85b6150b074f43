# SPDX-License-Identifier: Apache-2.0
"""The README.md of an exported folder: what it is, and where it comes from."""

import ml_collections

from sira_jax import configuration, storage

_TEXT = """---
{front}---

# {title}

{method} of {name}, trained with sira_jax ({trained}).

{notes}

- **Base**: `{uri}`
- **Method**: {rules}
- **Data**: {data}
- **Made with**: `python -m sira_jax.export --workdir={workdir} --format={kind}`

## Scores

{scores}

## Config

The whole config of the run; `train.py` with the same values trains it again.

```json
{config}
```
"""


def card(
  config: ml_collections.ConfigDict,
  workdir: storage.Path,
  *,
  kind: str,
  name: str,
  notes: str,
  trained: str,
) -> str:
  """Markdown, with the front matter that model hubs read.

  Args:
    config: of the run.
    workdir: of the run; its table of scores is taken over.
    kind: the format.
    name: of the base model.
    notes: what to know of the folder.
    trained: stage and step.
  """
  rules = [dict(rule) for _, rule in sorted(config.rules.items())]
  method = ", ".join(dict.fromkeys(rule["method"] for rule in rules))
  mixture = config.mixture
  scores = workdir / "results.md"
  front = {"base_model": name, "tags": f"[sira_jax, {method}]"}
  if kind not in ("native", "merged"):
    front["library_name"] = "peft"
  return _TEXT.format(
    front="".join(f"{key}: {value}\n" for key, value in front.items()),
    title=f"{method} for {name}",
    method="Adapters" if kind != "merged" else "Merged weights",
    name=name,
    trained=trained,
    notes=notes,
    uri=config.base.uri,
    rules="; ".join(_rule(rule) for rule in rules),
    data=f"tasks {', '.join(mixture.tasks)}; languages"
    f" {', '.join(mixture.languages)}",
    workdir=workdir,
    kind=kind,
    scores=scores.read_text().strip()
    if scores.exists()
    else "The run is not finished.",
    config=configuration.as_json(config).strip(),
  )


def _rule(rule):
  settings = {k: v for k, v in rule.items() if k not in ("path", "method")}
  values = ", ".join(f"{k}={v}" for k, v in settings.items() if v is not None)
  return f"`{rule['path']}`: {rule['method']}({values})"
