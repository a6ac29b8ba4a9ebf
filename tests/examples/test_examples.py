"""The examples alone, as plain PyTorch: what a reader tries first."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.examples import digits, train_text

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = ("train_text.py", "digits.py")


def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CHAOS_")}
    return subprocess.run(
        [sys.executable, str(FOLDER / name), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_a_reader_finds_is_what_is_installed_and_short(name: str) -> None:
    installed = Path(str(train_text.__file__)).with_name(name)
    assert (FOLDER / name).resolve() == installed
    assert len(installed.read_text().splitlines()) < 150


def test_the_loss_of_the_text_falls() -> None:
    done = example("train_text.py", "--steps", "40")
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"step +(\d+)  loss ([\d.]+)  members 1", done.stdout)
    assert [int(step) for step, _ in steps] == [10, 20, 30, 40]
    assert float(steps[-1][1]) < 3.3


def test_epochs_end_the_text_as_well(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"0123456789" * 100)
    text = train_text.Text(tmp_path)
    assert len(text) == 999 // train_text.CONTEXT
    x, y = text[1]
    assert bytes(x.tolist()) == (b"0123456789" * 100)[64:128]
    assert bytes(y.tolist()) == (b"0123456789" * 100)[65:129]


def test_text_of_one_length_on_every_machine(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"a" * 900)
    (tmp_path / "b.py").write_bytes(b"b" * 900)
    assert len(train_text.Text(tmp_path, size=1000)) == len(train_text.Text(tmp_path, size=1000 - 20)) == 15


def test_no_text(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no Python source in"):
        train_text.Text(tmp_path)


def share(done: subprocess.CompletedProcess[str]) -> float:
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split("%")[0])


def test_no_party_knows_all_digits_alone() -> None:
    assert share(example("digits.py", "--classes", "0-3")) < 50
    assert share(example("digits.py", "--classes", "4,5,6")) < 40


def test_the_data_of_all_parties_together_suffices() -> None:
    assert share(example("digits.py", "--classes", "0-9")) > 90


@pytest.mark.parametrize(
    ("text", "named"), [("0-3", [0, 1, 2, 3]), ("4,7", [4, 7]), ("9", [9]), ("0-1,5,1", [0, 1, 5])]
)
def test_classes(text: str, named: list[int]) -> None:
    assert digits.classes(text) == named


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-2-3", "8-10", "-1", "1,,2"])
def test_no_classes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="names no digits; write them as"):
        digits.classes(text)


def test_scikit_learn_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SystemExit, match="scikit-learn is missing; install it with"):
        digits.load()
