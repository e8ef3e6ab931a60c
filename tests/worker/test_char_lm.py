# SPDX-License-Identifier: Apache-2.0
"""Text of the standard library, cut into windows, and the model that predicts its characters."""

from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.errors import DataUnavailable
from worker.tasks.char_lm import CharLm
from worker.tasks.library_text import (
    CHARACTERS,
    MAX_CHARACTERS,
    MAX_CHARACTERS_OF_A_FILE,
    UNKNOWN,
    VOCABULARY,
    digest,
    numbers,
    text_files,
    windows,
)

NAMES = [f"module_{number:03}.py" for number in range(40)]


def a_library(folder: Path, text: str = "import this\n") -> Path:
    for name in NAMES:
        (folder / name).write_text(f"# {name}\n{text}", encoding="utf-8")
    return folder


def test_a_character_is_known_if_it_is_printable_ascii_a_newline_or_a_tab() -> None:
    assert (len(CHARACTERS), VOCABULARY) == (97, 98)
    assert sorted(numbers(CHARACTERS)) == list(range(97))
    assert numbers("\r\x00\x7f\x80é😀").tolist() == [UNKNOWN] * 6


def test_a_target_is_the_character_after_its_input_also_at_the_end_of_a_window() -> None:
    inputs, targets = windows("abcdefghij", 3)
    assert inputs.tolist() == [numbers("abc").tolist(), numbers("def").tolist(), numbers("ghi").tolist()]
    assert targets.tolist() == [numbers("bcd").tolist(), numbers("efg").tolist(), numbers("hij").tolist()]


@pytest.mark.parametrize(("length", "num_windows"), [(0, 0), (63, 0), (64, 0), (65, 1), (128, 1), (129, 2)])
def test_a_window_needs_one_character_more_than_it_has(length: int, num_windows: int) -> None:
    inputs, targets = windows("x" * length, 64)
    assert inputs.shape == targets.shape == (num_windows, 64)


def test_files_come_in_the_order_of_their_names_and_keep_their_beginning(tmp_path: Path) -> None:
    files = text_files(a_library(tmp_path, "x" * 20_000))
    assert [file.name for file in files] == NAMES
    assert {len(file.text) for file in files} == {MAX_CHARACTERS_OF_A_FILE}


def test_all_files_together_are_no_longer_than_the_limit(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number:03}.py").write_text("x" * 10_000)
    assert sum(len(file.text) for file in text_files(tmp_path)) == MAX_CHARACTERS


def test_files_that_differ_between_installations_are_left_out(tmp_path: Path) -> None:
    before = digest(text_files(a_library(tmp_path)))
    for name in ("_sysconfigdata__linux_x86_64-linux-gnu.py", "sitecustomize.py"):
        (tmp_path / name).write_text("prefix = '/somewhere'\n")
    assert digest(text_files(tmp_path)) == before


def test_the_digest_follows_names_and_text_and_not_how_lines_end(tmp_path: Path) -> None:
    before = digest(text_files(a_library(tmp_path)))
    (tmp_path / NAMES[3]).write_bytes(f"# {NAMES[3]}\r\nimport this\r\n".encode())
    assert digest(text_files(tmp_path)) == before
    (tmp_path / NAMES[3]).write_text("import that\n")
    changed = digest(text_files(tmp_path))
    (tmp_path / NAMES[3]).rename(tmp_path / "module_003b.py")
    assert len({before, changed, digest(text_files(tmp_path))}) == 3


def test_about_one_file_in_ten_is_for_evaluation_and_which_does_not_depend_on_the_others(
    tmp_path: Path,
) -> None:
    files = text_files(a_library(tmp_path))
    chosen = [file.name for file in files if file.is_for_evaluation]
    assert 1 <= len(chosen) <= 8
    for name in NAMES[:5]:
        (tmp_path / name).unlink()
    still = [file.name for file in text_files(tmp_path) if file.is_for_evaluation]
    assert still == [name for name in chosen if name not in NAMES[:5]]


def test_a_folder_without_the_sources_is_told_as_data_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"expected the source files .* found 0 files"):
        text_files(tmp_path)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(DataUnavailable, match="a source file cannot be read"):
        text_files(tmp_path)


def test_there_are_about_twenty_thousand_windows_of_many_files_to_train_on() -> None:
    task = CharLm()
    training, evaluation = task.training_data(), task.evaluation_data()
    assert 15_000 < len(training) < 25_000
    assert 1_000 < len(evaluation) < 4_000
    assert training.inputs.shape[1:] == training.targets.shape[1:] == (64,)
    assert training.inputs.dtype == training.targets.dtype == torch.int64
    assert torch.equal(training.inputs[:, 1:], training.targets[:, :-1])
    assert len(np.unique(task.groups())) > 100
    assert len(task.text_digest) == 64


def test_a_group_is_one_file() -> None:
    """Within a file a window's last target begins the next window; between files it seldom does."""
    task = CharLm()
    training, groups = task.training_data(), task.groups()
    goes_on = (training.targets[:-1, -1] == training.inputs[1:, 0]).numpy()
    same_file = groups[:-1] == groups[1:]
    assert goes_on[same_file].all()
    assert goes_on[~same_file].mean() < 0.5


def test_no_output_depends_on_a_character_that_comes_after_it() -> None:
    model = CharLm().model().eval()
    text = torch.randint(VOCABULARY, (1, 64), generator=torch.Generator().manual_seed(0))
    changed = text.clone()
    changed[0, 40] = (text[0, 40] + 1) % VOCABULARY
    with torch.no_grad():
        first, other = model(text), model(changed)
    assert torch.equal(first[0, :40], other[0, :40])
    assert not torch.allclose(first[0, 40:], other[0, 40:])


def test_a_shorter_text_than_the_context_gives_what_it_gives_within_a_longer_one() -> None:
    model = CharLm().model().eval()
    text = torch.randint(VOCABULARY, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(text[:, :10]), model(text)[:, :10], rtol=1e-4, atol=1e-5)
