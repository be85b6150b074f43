"""The profile of a step: which operation is whose, and what is added up."""

import json

import pytest

from benchmarks import profiles

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/a/sira_jax/training/step.py"
2 "/b/flax/nnx/nn/linear.py"
3 "/a/sira_jax/adapters/adapted_layers.py"
4 "/a/sira_jax/training/losses.py"

FunctionNames
1 "step"
2 "Linear.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7}
2 {file_name_id=3 function_name_id=2 line=8}
3 {file_name_id=2 function_name_id=2 line=9}
4 {file_name_id=4 function_name_id=1 line=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=2}
5 {file_location_id=3 parent_frame_id=5}

ENTRY %main {
  %dot.1 = f32[2]{0} dot(), metadata={op_name="jit(f)/jvp()/dot" \
stack_frame_id=3}
  ROOT %add.2 = f32[2]{0} add(), metadata={op_name="jit(f)/transpose(jvp())" \
stack_frame_id=2}
  %fusion = f32[2]{0} fusion(), metadata={stack_frame_id=5}
  %copy.3 = f32[2]{0} copy()
  %sub = f32[2]{0} subtract(), metadata={op_name="sub" stack_frame_id=1}
}
"""


# As jax 0.10 numbers what is around a frame, and from zero.
@pytest.mark.parametrize("shift", [1, 0])
def test_operations(shift):
  text = PROGRAM
  if not shift:
    for number in range(1, 6):
      text = text.replace(f"parent_frame_id={number}", f"around={number - 1}")
    text = text.replace(" around=0", "").replace("around", "parent_frame_id")
  found = profiles.operations(text)
  assert {name: (one.part, one.backward) for name, one in found.items()} == {
    "dot.1": ("base: products", False),
    "add.2": ("adapters: the rest", True),
    # Whatever the losses call is theirs.
    "fusion": ("logits and loss", False),
    "sub": ("optimizer", False),
  }
  assert found["dot.1"].places[1:] == (
    "/a/sira_jax/adapters/adapted_layers.py Linear.__call__",
    "/a/sira_jax/training/step.py step",
  )


def test_parts():
  known = profiles.operations(PROGRAM)
  events = [
    profiles.Event("dot.1", 100.0, 2.0),
    profiles.Event("dot.1", 102.0, 1.0),
    # At the same time for 2, in which each has a half.
    profiles.Event("add.2", 110.0, 5.0),
    profiles.Event("copy.3", 112.0, 2.0),
    profiles.Event("while.12", 90.0, 30.0),
    profiles.Event("cond", 90.0, 30.0),
  ]
  found = profiles.parts(iter(events), known)
  assert found == {
    ("base: products", False): 0.375,
    ("adapters: the rest", True): 0.5,
    ("other", False): 0.125,
  }
  text = profiles.table(found, 0.008)
  assert "| base: products | 3.0 | 0.0 | 37.5 % |" in text
  assert "| all | 4.0 | 4.0 | 100 % |" in text
  with pytest.raises(ValueError, match="no operations"):
    profiles.parts(iter([]), known)


def test_a_folder_without_a_profile(tmp_path):
  with pytest.raises(ValueError, match="no profile in"):
    next(profiles.events(tmp_path))


def test_the_command(tmp_path, capsys):
  out = tmp_path / "profile.json"
  arguments = ["--preset=quick", "--steps=1", f"--out={out}"]
  profiles.main(arguments)
  found = json.loads(out.read_text())
  shares = {}
  for row in found["parts"]:
    shares[row["part"]] = shares.get(row["part"], 0.0) + row["share"]
  assert sum(shares.values()) == pytest.approx(1)
  # What is known of every operation, so that little is left to "other".
  assert shares.get("other", 0.0) < 0.2
  said = capsys.readouterr().out
  for part in ("base: products", "adapters: products", "adapters: routing"):
    assert 0.01 < shares[part] < 0.7
    assert f"| {part} |" in said
