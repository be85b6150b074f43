# SPDX-License-Identifier: Apache-2.0
"""A few texts that a real encoder reads."""

SENTENCES = (
  "Turn on the lights in the kitchen, please.",
  "Wie wird das Wetter morgen in Zürich?",
  "A list of thirty-one words may be long, but it is not so long that a small"
  " encoder could not read the whole of it, from here to its very end.",
  "No.",
)
IN_MORE_LANGUAGES = (
  *SENTENCES,
  "犬は速く走る",
  "گربه روی مبل خوابیده است",
)
