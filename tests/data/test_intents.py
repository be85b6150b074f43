# SPDX-License-Identifier: Apache-2.0
import pytest

from sira_jax.data import examples, intents, languages, nouns, templates


@pytest.mark.parametrize(
  ("language", "text", "target"),
  [
    (
      "en",
      "close window on our toilet",
      "HassTurnOff(area=toilet, name=window)",
    ),
    (
      "de",
      "Lautstärke des fernseher 1 stellen",
      "HassSetVolume(name=fernseher, volume_level=1)",
    ),
    ("nb", "pause 50-minutter timeren", "HassPauseTimer(start_minutes=50)"),
    (
      "pl",
      "ciszej głośność telewizor o 90 %",
      "HassSetVolumeRelative(name=telewizor, volume_step=-90)",
    ),
    ("zh", "给学校计时减82秒钟", "HassDecreaseTimer(area=学校, seconds=82)"),
    ("el", "συνέχεια", "HassMediaUnpause()"),
    (
      "bg",
      "температурата във вана",
      "HassClimateGetTemperature(area=вана)",
    ),
    ("cy", "be ydi dyddiad heddiw", "HassGetCurrentDate()"),
    ("th", "หยุดจับเวลา73นาที", "HassCancelTimer(start_minutes=73)"),
  ],
)
def test_rows(language, text, target):
  assert (f"command: {text}\n", target) in intents.rows(language)["test"]


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_every_template_is_sampled(language):
  report = intents.report(language)
  assert report.failed == ()
  assert sum(report.rows.values()) > 3 * report.templates
  assert report.rows["test"] > 50
  assert report.rows["validation"] > 50
  assert report.rows == {
    split: len(rows) for split, rows in intents.rows(language).items()
  }


@pytest.mark.parametrize("language", ["en", "de", "ko", "ru"])
def test_no_template_is_in_two_splits(language):
  splits = {
    row.inputs: split
    for split, rows in intents.rows(language).items()
    for row in rows
  }
  speaker = templates.Speaker(
    languages.get(language).intents, nouns.nouns(language)
  )
  seen = {}
  for template in speaker.templates():
    for row in intents._utterances(speaker, template, language):
      if row.inputs in splits:
        seen.setdefault(template.text, set()).add(splits[row.inputs])
  # One utterance that two templates allow is in the split of one of them.
  alien = [text for text in seen if seen[text] != {examples.split_of(text)}]
  assert len(alien) <= intents.report(language).leaked
  assert {split for found in seen.values() for split in found} == set(
    examples.SPLITS
  )


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_no_utterance_occurs_twice(language):
  texts = [
    row.inputs.casefold()
    for rows in intents.rows(language).values()
    for row in rows
  ]
  assert len(set(texts)) == len(texts)


def test_what_is_left_out_is_counted():
  same = examples.Example("command: Stop\n", "A()")
  other = examples.Example("command: stop\n", "B()")
  kept, dropped = intents._separate(
    {"train": [same, same, other], "validation": [], "test": [other]}
  )
  assert kept == {"train": [same], "validation": [], "test": []}
  assert dropped == {"repeated": 1, "ambiguous": 1, "leaked": 1}


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("open <nothing>", "no expansion rule <nothing>"),
    ("{area} and {area}", "slot 'area' is filled twice"),
    ("turn (on", "ParseError"),
  ],
)
def test_templates_that_fail_are_reported(monkeypatch, text, reason):
  bad = templates.Template("HassTurnOn", text, {}, ())
  good = templates.Template("HassTurnOn", "turn on {name}", {}, ())
  monkeypatch.setattr(
    templates.Speaker, "templates", lambda self: iter([bad, good])
  )
  rows, report = intents._sample.__wrapped__("en")
  assert report.templates == 2
  assert [failed for failed, _ in report.failed] == [text]
  assert reason in report.failed[0][1]
  assert sum(map(len, rows.values())) == intents.SAMPLES


def test_slots_are_written_by_name():
  slots = {"name": "lamp", "area": "hall", "brightness": 50}
  written = intents.target("HassLightSet", slots)
  assert written == "HassLightSet(area=hall, brightness=50, name=lamp)"
  assert intents.target("HassNevermind", {}) == "HassNevermind()"


@pytest.mark.parametrize("language", languages.LANGUAGES)
def test_homes_are_furnished_in_every_language(language):
  words = nouns.nouns(language)
  assert [len(set(kind)) for kind in words] == [25, 10, 4, 10, 6]
  assert not set(words.areas) & set(words.floors)
  for kind in words:
    for word in kind:
      assert word == " ".join(word.split())
      assert not set(word) & set("(),=:;_")


def test_names_are_of_the_domain_that_the_template_asks_for():
  words = nouns.nouns("en")
  assert words.devices_in(["light"]) == ("light bulb", "candle", "flashlight")
  assert "door" in words.devices_in(["lock", "cover"])
  assert words.devices_in([]) == words.devices
  assert words.devices_in(["weather"]) == words.devices


def test_unknown_languages():
  with pytest.raises(ValueError, match=r"'xx'.*Available are: ar, bg"):
    intents.rows("xx")
  with pytest.raises(ValueError, match=r"'xx'.*some in: ar, bg"):
    nouns.nouns("xx")
  with pytest.raises(ValueError, match=r"'xx'. It has: af"):
    templates.Speaker("xx", nouns.nouns("en"))


def test_names_are_of_the_same_commands():
  whole, named = intents.rows("en"), intents.names("en")
  assert whole.keys() == named.keys()
  for split, found in named.items():
    assert [row.inputs for row in found] == [row.inputs for row in whole[split]]
    for row, full in zip(found, whole[split], strict=True):
      assert full.targets.startswith(f"{row.targets}(")
      assert row.targets.isalpha()
