# SPDX-License-Identifier: Apache-2.0
"""Many tensors in one buffer: what was put in is what is seen in it."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from worker.flat import ALIGNMENT, FlatSum, Layout
from worker.model import ExchangedParameters

SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6)


def some_tensors(shapes: list[list[int]], *lead: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn((*lead, *shape), generator=generator) for shape in shapes]


@given(SHAPES, st.lists(st.integers(1, 3), max_size=1))
def test_a_buffer_gives_back_the_tensors_it_was_made_of(shapes: list[list[int]], lead: list[int]) -> None:
    layout = Layout(tuple(torch.Size(shape) for shape in shapes))
    tensors = some_tensors(shapes, *lead)
    flat = layout.flattened(tensors)
    assert flat.shape == (*lead, layout.size)
    assert all(torch.equal(*pair) for pair in zip(layout.views(flat), tensors, strict=True))


@given(SHAPES)
def test_every_coordinate_of_a_buffer_belongs_to_one_tensor(shapes: list[list[int]]) -> None:
    layout = Layout(tuple(torch.Size(shape) for shape in shapes))
    flat = torch.zeros(layout.size)
    for view in layout.views(flat):
        view.add_(1)
    assert flat.tolist() == [1.0] * layout.size


def test_tensors_of_whole_boundaries_begin_on_one_wherever_the_others_stand() -> None:
    layout = Layout(tuple(torch.Size(shape) for shape in ([3], [8], [5, 5], [2, 4])))
    offsets = [view.storage_offset() for view in layout.views(torch.empty(layout.size))]
    assert offsets[1] % ALIGNMENT == offsets[3] % ALIGNMENT == 0


def test_a_sum_is_of_all_that_was_added_and_changes_none_of_it() -> None:
    layout = Layout((torch.Size([2]), torch.Size([1])))
    total, first = FlatSum(layout), torch.tensor([4.0, 8.0])
    total.add([first, torch.tensor([0.0])])
    total.add([torch.tensor([0.0, 4.0]), torch.tensor([2.0])])
    assert total.flat is not None
    assert [view.tolist() for view in layout.views(total.flat)] == [[4.0, 12.0], [2.0]]
    assert first.tolist() == [4.0, 8.0]


def test_a_models_parameters_lie_in_the_buffer_and_keep_their_values() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    before = [parameter.clone() for parameter in model.parameters()]
    exchanged = ExchangedParameters.of(model)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))
    exchanged.flat.zero_()
    assert all((parameter == 0).all() for parameter in model.parameters())


def test_a_tied_parameter_lies_there_once() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "logits": nn.Linear(4, 7, bias=False)})
    model["logits"].weight = model["embedding"].weight
    exchanged = ExchangedParameters.of(model)
    assert exchanged.names == ("embedding.weight",) and exchanged.layout.size == 28
    exchanged.flat.fill_(2.0)
    assert (model["logits"].weight == 2.0).all()


def test_bfloat16_parameters_keep_what_bfloat16_would_lose() -> None:
    """256 steps of 1/1024 from 1: in bfloat16 each would be lost, whose next number after 1 is 1 + 1/128."""
    model = nn.Linear(3, 1, bias=False, dtype=torch.bfloat16)
    exchanged = ExchangedParameters.of(model)
    exchanged.take(torch.ones(3))
    for _ in range(256):
        exchanged.flat.add_(1 / 1024)
        exchanged.show()
    assert exchanged.flat.tolist() == [1.25] * 3
    assert model.weight.dtype == torch.bfloat16 and model.weight.tolist() == [[1.25] * 3]
