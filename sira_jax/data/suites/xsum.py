# SPDX-License-Identifier: Apache-2.0
"""XSum, a summary of one sentence, in T5's text-to-text form.

    summarize: The full text of an article ...  ->  What it is about.

Narayan et al. 2018; t5/data/preprocessors.py, `summarize`. Scored by ROUGE-1, 2
and L. Files are the hub's (EdinburghNLP/xsum), or TFDS's xsum.
"""

from sira_jax.data import examples
from sira_jax.data.suites import forms


def _xsum(row: forms.Row, training: bool) -> list[examples.Example]:
  del training
  inputs = f"summarize: {forms.text(row, 'document')}"
  return [examples.Example(inputs, forms.text(row, "summary"))]


TASKS = {
  "xsum": forms.Task(
    examples=_xsum,
    columns=("document", "summary"),
    metrics=("rouge",),
    places=("default", "data", "."),
    get=forms.hub("EdinburghNLP/xsum"),
    splits=forms.ALL_THREE,
    tfds="xsum",
  )
}
