"""What a run says, with a clock of our own."""

import pytest

from sira_jax import progress

METRICS = {"loss": 1.5, "examples": 8, "tokens": 100, "waiting": 0.0}
METRICS |= {"positions": 128}
ROUTED = METRICS | {"balance_loss": 1.25, "dropped_fraction": 0.031}


@pytest.fixture
def clock(monkeypatch):
  class Clock:
    now = 100.0

    def monotonic(self):
      return self.now

  clock = Clock()
  monkeypatch.setattr(progress, "time", clock)
  return clock


def lines(clock, capsys, *, terminal=False, metrics=METRICS, **settings):
  """What 4 steps of 10 seconds each say."""
  capsys.readouterr()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      progress.sys.stdout, "isatty", lambda: terminal, raising=False
    )
    line = progress.Progress(**settings)
  for step in range(settings["total"] - 3, settings["total"] + 1):
    clock.now += 10
    line.update(step, metrics)
  return capsys.readouterr().out


def test_a_line_now_and_then(clock, capsys):
  """Rates count what came since the last line; the last step is always said."""
  assert lines(clock, capsys, total=4, every=25).splitlines() == [
    "step 3/4  loss 1.500  0.8 examples/s  10 tokens/s  10s left",
    "step 4/4  loss 1.500  0.8 examples/s  10 tokens/s  0s left",
  ]


def test_a_resumed_run(clock, capsys):
  out = lines(clock, capsys, total=14, start=10, every=5).splitlines()
  assert [line.split("  ")[-1] for line in out] == [
    "30s left",
    "20s left",
    "10s left",
    "0s left",
  ]


def test_routing(clock, capsys):
  out = lines(clock, capsys, total=4, every=100, metrics=ROUTED)
  assert "loss 1.500  balance 1.25  dropped 3.1%  0.8 examples/s" in out


def test_a_terminal_has_one_line(clock, capsys):
  out = lines(clock, capsys, terminal=True, total=4)
  assert out.count("\n") == 1 and out.endswith("0s left\n")
  assert out.count("\r\033[K") == 4


@pytest.mark.parametrize(
  "seconds, expected",
  [
    (0, "0s"),
    (59.4, "59s"),
    (59.6, "1m00s"),
    (200, "3m20s"),
    (3599.7, "1h00m"),
    (3720, "1h02m"),
  ],
)
def test_duration(seconds, expected):
  assert progress.duration(seconds) == expected


def test_a_pause_is_no_part_of_the_rates(clock, capsys):
  """Two steps of 10 s each, and 100 s of something else between them."""
  line = progress.Progress(total=4, every=15)
  clock.now += 10
  line.update(1, METRICS)
  clock.now += 100
  line.pause(100)
  clock.now += 10
  line.update(2, METRICS)
  # 16 examples and 200 tokens in 20 s; two more steps.
  assert capsys.readouterr().out == (
    "step 2/4  loss 1.500  0.8 examples/s  10 tokens/s  20s left\n"
  )


def test_waiting_for_data(clock, capsys):
  """1 s of each of four times 10; then 1 % is said and less is not."""
  metrics = METRICS | {"waiting": 1.0}
  out = lines(clock, capsys, total=4, every=35, metrics=metrics)
  assert "10 tokens/s  waiting for data 10%  0s left" in out
  metrics = METRICS | {"waiting": 0.09}
  assert "waiting" not in lines(clock, capsys, total=4, metrics=metrics)
  line = progress.Progress(total=4, every=15)
  for seconds in (1.0, 3.0, 0.0):
    clock.now += 10
    line.update(1, METRICS | {"waiting": seconds})
  clock.now += 10
  assert line.data() == (
    "Waiting for data took at most 10.0% of the time. Of the positions 21.9%"
    " were padding."
  )
