# SPDX-License-Identifier: Apache-2.0
"""Tasks `gpt2-small` and `gpt-mini`: the text they take, their tokens, and what is learned from them."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from protocol.errors import DataUnavailable
from worker.tasks.gpt_lm import Gpt2Small, GptMini
from worker.tasks.library_text import whole_files
from worker.tasks.pieces import Vocabulary

torch.set_num_threads(1)

PATHS = [f"{folder}module_{number:02}.py" for folder in ("", "json/", "xml/dom/") for number in range(15)]


def a_library(folder: Path) -> Path:
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"# {path}\nimport this\n")
    return folder


# --- text ------------------------------------------------------------------------------------------


def test_whole_files_of_all_folders_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    (a_library(tmp_path) / "json" / "large.py").write_text("x" * 1_000_000)
    files = whole_files(tmp_path)
    assert [file.name for file in files] == sorted([*PATHS, "json/large.py"])
    assert max(len(file.text) for file in files) == 1_000_000


@pytest.mark.parametrize(
    "path",
    ["site-packages/torch/nn.py", "json/tests/test_x.py", "test/x.py", "config-3.11-linux/y.py", "n.txt"],
)
def test_what_another_machine_may_not_have_is_left_out(path: str, tmp_path: Path) -> None:
    file = a_library(tmp_path) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("import this\n")
    assert [file.name for file in whole_files(tmp_path)] == sorted(PATHS)


def test_a_folder_that_leads_back_to_itself_is_not_followed(tmp_path: Path) -> None:
    (a_library(tmp_path) / "json" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert [file.name for file in whole_files(tmp_path)] == sorted(PATHS)


def test_a_folder_that_is_not_there_is_told_as_data_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="cannot be read"):
        whole_files(tmp_path / "nowhere")


# --- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [GptMini(), Gpt2Small()], ids=["gpt-mini", "gpt2-small"])
def test_examples_are_windows_of_files_that_do_not_overlap(task: GptMini | Gpt2Small) -> None:
    training, groups = task.training_data(), task.groups()
    assert training.inputs.shape == training.targets.shape == (len(groups), task.context)
    assert training.inputs.dtype == training.targets.dtype == torch.int64
    assert torch.equal(training.inputs[:, 1:], training.targets[:, :-1])
    # within a file a window's last target begins the next window; between files it seldom does
    goes_on = (training.targets[:-1, -1] == training.inputs[1:, 0]).numpy()
    same_file = groups[:-1] == groups[1:]
    assert goes_on[same_file].all()
    assert goes_on[~same_file].mean() < 0.5
    assert len(np.unique(groups)) > 200


def test_no_example_is_of_more_tokens_than_there_are_and_many_are_of_bytes() -> None:
    task = Gpt2Small()
    assert len(task.vocabulary) <= task.max_tokens <= task.outputs
    targets = task.training_data().targets
    assert targets.max() < len(task.vocabulary)
    assert 0.001 < (targets < 256).float().mean() < 0.1


def test_there_are_about_two_million_tokens_to_train_on_in_windows_of_a_thousand() -> None:
    task = Gpt2Small()
    assert 1_500_000 < task.training_data().inputs.numel() < 4_000_000
    assert 80 < len(task.evaluation_data()) < 1_000


def test_an_example_reads_as_the_source_it_is_of() -> None:
    task = GptMini()
    files = whole_files(Path(sysconfig.get_paths()["stdlib"]))
    source = next(file.text for file in files if not file.is_for_evaluation)
    windows = task.training_data().inputs[task.groups() == 0]
    assert source.startswith(task.vocabulary.decode(windows.flatten().numpy()))


def test_the_vocabulary_is_that_of_the_training_text_alone(tmp_path: Path) -> None:
    files = whole_files(a_library(tmp_path))
    held_out = next(file for file in files if file.is_for_evaluation)
    training = [file.text for file in files if not file.is_for_evaluation]
    before = Vocabulary.of(training, 1000)
    (tmp_path / held_out.name).write_text("nowhere else " * 1000)
    after = Vocabulary.of([file.text for file in whole_files(tmp_path) if not file.is_for_evaluation], 1000)
    assert after.digest == before.digest


def test_both_sizes_are_of_one_text_and_the_small_ones_tokens_are_the_large_ones_first() -> None:
    mini, small = GptMini(), Gpt2Small()
    assert mini.text_digest == small.text_digest and len(mini.text_digest) == 64
    assert small.vocabulary.pieces[: len(mini.vocabulary.pieces)] == mini.vocabulary.pieces


def test_the_models_first_parameter_is_called_after_the_vocabulary() -> None:
    task = GptMini()
    assert next(task.model().named_parameters())[0] == f"tokens_{task.vocabulary.digest[:8]}.weight"


# --- learning --------------------------------------------------------------------------------------


def entropy_of_single_tokens(targets: Tensor) -> float:
    """The loss, in nats, of a model that knows how often each token comes and nothing else."""
    counts = targets.flatten().bincount()
    shares = counts[counts > 0] / counts.sum()
    return -(shares * shares.log()).sum().item()


def test_fifty_steps_teach_gpt_mini_more_than_how_often_each_token_comes() -> None:
    task = GptMini()
    torch.manual_seed(0)
    model = task.model()
    inputs, targets = (part[:16, :64] for part in (task.training_data().inputs, task.training_data().targets))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(50):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 10)
        loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * entropy_of_single_tokens(targets)
