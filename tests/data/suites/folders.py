# SPDX-License-Identifier: Apache-2.0
"""Writes tiny data sets in the form in which they are released."""

import json

import pyarrow
from pyarrow import ipc, parquet

from sira_jax.data.suites import reading


def write(file, rows, *, types=None):
  """Rows as the ending of the file's name says; a TSV's text as it is."""
  file.parent.mkdir(parents=True, exist_ok=True)
  if file.suffix == ".tsv":
    file.write_text("\n".join("\t".join(cells) for cells in rows) + "\n")
  elif file.suffix == ".jsonl":
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  else:
    schema = types and pyarrow.schema(types)
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    if file.suffix == ".arrow":
      with ipc.RecordBatchStreamWriter(str(file), table.schema) as writer:
        writer.write_table(table)
    else:
      parquet.write_table(table, file)


def read(name, folder, *, languages=("en",), ending="\n", **settings):
  """The task's definition, of files in a folder."""
  (suite,) = (s for s, tasks in reading.SUITES.items() if name in tasks)
  return reading.read(
    name,
    reading.SUITES[suite][name],
    reading.Suite(folder=str(folder), ending=ending),
    languages=languages,
    **settings,
  )


def score(definition, answers, *, split="validation", language="en"):
  """The metrics of answers, which are by prompt, and what is asked."""
  rows = definition.rows(language)[split]
  found = {}
  for metric in definition.metric_fns:
    found |= metric(
      [row.targets for row in rows], [answers[row.inputs] for row in rows]
    )
  return found
