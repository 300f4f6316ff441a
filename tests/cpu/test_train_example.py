"""examples/train.py: both models learn real text, and train alike when compiled."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

EXAMPLE = Path(__file__).parents[2] / "examples" / "train.py"


def run(*arguments: str) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return CliRunner().invoke(runpy.run_path(str(EXAMPLE))["main"], arguments)
    finally:
        torch.set_num_threads(threads)
        torch._dynamo.reset()


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    ("task", "name", "length"),
    [("language", "Hyena language model", "128"), ("classify", "LongConv classifier", "512")],
)
def test_losses_fall_and_agree(task: str, name: str, length: str) -> None:
    done = run(task, "--steps", "30", "--length", length, "--backend", "aot_eager")
    assert done.exit_code == 0, done.output
    first, last = re.findall(name + r": .* loss ([\d.]+) -> ([\d.]+);", done.output)[0]
    assert float(last) < 0.85 * float(first)
    apart = re.findall(r"\(aot_eager\): .* losses within (\S+)", done.output)
    assert float(apart[0]) <= 0.01


@pytest.mark.slow
def test_the_example_as_it_is_shown() -> None:
    done = run()
    assert done.exit_code == 0, done.output
    assert done.output.count("torch.compile (inductor)") == 2


def test_what_goes_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("language", "--length", "2000000")
    assert done.exit_code == 1
    assert re.search(r"the text has \d+ bytes, excerpts need 2000001: shorten them", done.output)
    module: dict[str, Any] = runpy.run_path(str(EXAMPLE))
    compare = module["compare"]
    task = module["languages"](256, 3, 0)
    monkeypatch.setitem(compare.__globals__, "train", lambda *_: (task.model(), [1.0, 2.0]))
    with pytest.raises(module["FFTGenError"], match="did not learn"):
        compare(task, 10, 0, None)
    losses = iter(([2.0, 1.0], [2.0, 1.1]))
    good = torch.nn.functional.one_hot(task.held_out[1], 3).float() * 9

    class Knows(torch.nn.Module):
        def forward(self, text: torch.Tensor) -> torch.Tensor:
            return good

    monkeypatch.setitem(compare.__globals__, "train", lambda *_: (Knows(), next(losses)))
    with pytest.raises(
        module["FFTGenError"], match=r"trains otherwise when compiled: losses differ by 1\.0e-01"
    ):
        compare(task, 10, 0, "inductor")
