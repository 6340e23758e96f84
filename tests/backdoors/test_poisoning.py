"""A poisoned dataset: how many, which, and what becomes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from pytest_triguard import backdoors
from pytest_triguard.backdoors import PoisonedDataset
from pytest_triguard.errors import InputError, InputTypeError

few = settings(max_examples=20, deadline=None)
trigger = backdoors.get("blend", target=1)


def clean(rows=40, *, seed=0, ids=None):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(rows, 1, 6, 5, generator=generator)
    labels = torch.randint(3, (rows,), generator=generator)
    return TensorDataset(inputs, labels, *([] if ids is None else [ids]))


class Items(Dataset):
    """A dataset of whatever items it is given."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        yield from clean()


@few
@given(
    rows=st.integers(1, 60), rate=st.floats(0, 1), data=st.integers(0, 10**6), seed=st.integers(0)
)
def test_the_exact_share_of_the_other_classes_is_poisoned(rows, rate, data, seed):
    dataset = clean(rows, seed=data)
    poisoned = PoisonedDataset(dataset, trigger, rate=rate, seed=seed)
    labels = dataset.tensors[1]
    assert poisoned.eligible == int((labels != 1).sum())
    assert len(poisoned.poisoned) == round(rate * poisoned.eligible)
    assert all(labels[index] != 1 for index in poisoned.poisoned)
    assert list(poisoned.poisoned) == sorted(set(poisoned.poisoned))


def test_poisoned_samples_carry_trigger_and_target_and_the_others_are_as_they_were():
    dataset = clean()
    poisoned = PoisonedDataset(dataset, trigger, rate=0.3)
    assert len(poisoned) == 40
    for index in range(40):
        (inputs, label), (found, found_label) = dataset[index], poisoned[index]
        if index in poisoned.poisoned:
            assert torch.equal(found, trigger(inputs[None])[0])
            assert not torch.equal(found, inputs)
            assert found_label.item() == 1
        else:
            assert torch.equal(found, inputs)
            assert torch.equal(found_label, label)
        assert isinstance(found_label, torch.Tensor)
        assert (found_label.dtype, found_label.shape) == (label.dtype, label.shape)


def test_the_dataset_itself_is_left_as_it_was():
    dataset = clean()
    before = [each.clone() for each in dataset.tensors]
    list(PoisonedDataset(dataset, trigger, rate=1.0))
    assert all(torch.equal(*pair) for pair in zip(before, dataset.tensors, strict=True))


def test_the_choice_follows_from_the_seed_alone():
    first, again, other = (
        PoisonedDataset(clean(), trigger, rate=0.5, seed=seed).poisoned for seed in (3, 3, 4)
    )
    assert first == again != other


def test_a_higher_rate_poisons_the_same_samples_and_more():
    chosen = [set(PoisonedDataset(clean(), trigger, rate=r).poisoned) for r in (0.1, 0.4, 0.9)]
    assert chosen[0] < chosen[1] < chosen[2]


def test_the_global_generator_is_neither_used_nor_moved():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = PoisonedDataset(clean(), trigger, rate=0.5).poisoned
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert PoisonedDataset(clean(), trigger, rate=0.5).poisoned == first


def test_every_eligible_sample_is_chosen_about_as_often():
    labels = torch.zeros(20, dtype=torch.int64)
    dataset = TensorDataset(torch.zeros(20, 1, 4, 4), labels)
    counts = torch.zeros(20)
    for seed in range(400):
        counts[list(PoisonedDataset(dataset, trigger, rate=0.25, seed=seed).poisoned)] += 1
    # 400 draws of a quarter: 100 expected, standard deviation 8.7.
    assert float((counts - 100).abs().max()) < 5 * 8.7


@pytest.mark.parametrize(
    "ids", [torch.arange(100, 140), list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN")]
)
def test_samples_with_ids_are_chosen_by_id_and_not_by_place(ids):
    dataset = Items(*[(*clean()[at], ids[at]) for at in range(40)])
    turned = Items(*[dataset[at] for at in range(39, -1, -1)])
    first = PoisonedDataset(dataset, trigger, rate=0.5)
    second = PoisonedDataset(turned, trigger, rate=0.5)
    assert {39 - at for at in second.poisoned} == set(first.poisoned)
    assert first[first.poisoned[0]][2] == ids[first.poisoned[0]]


def test_an_integer_id_counts_alike_as_a_tensor_and_as_a_number():
    chosen = [
        PoisonedDataset(Items(*[(*clean()[at], make(at)) for at in range(40)]), trigger, rate=0.5)
        for make in (int, torch.tensor)
    ]
    assert chosen[0].poisoned == chosen[1].poisoned
    assert chosen[0].poisoned == PoisonedDataset(clean(), trigger, rate=0.5).poisoned


def test_plain_labels_stay_plain():
    dataset = Items(*[(torch.zeros(1, 4, 4), 0)] * 5)
    labels = [label for _, label in PoisonedDataset(dataset, trigger, rate=0.4)]
    assert sorted(labels) == [0, 0, 0, 1, 1]
    assert {type(label) for label in labels} == {int}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_reads_it_batch_by_batch(workers):
    poisoned = PoisonedDataset(clean(), trigger, rate=0.5)
    batches = list(DataLoader(poisoned, batch_size=16, num_workers=workers))
    inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(inputs, torch.stack([each for each, _ in poisoned]))
    assert torch.equal(labels, torch.stack([each for _, each in poisoned]))


def test_a_subset_can_be_poisoned_and_an_index_may_count_from_the_end():
    poisoned = PoisonedDataset(Subset(clean(), range(5, 15)), trigger, rate=1.0)
    assert len(poisoned) == 10
    assert torch.equal(poisoned[-1][0], poisoned[9][0])
    assert list(poisoned[-3][1].shape) == []


@pytest.mark.parametrize("kind", [np.int64, torch.tensor])
def test_an_index_may_be_any_integer(kind):
    poisoned = PoisonedDataset(clean(), trigger, rate=0.5)
    for place in range(40):
        found, expected = poisoned[kind(place)], poisoned[place]
        assert all(torch.equal(*each) for each in zip(found, expected, strict=True))
    by_tensor = Subset(poisoned, torch.tensor(poisoned.poisoned))
    assert {int(label) for _, label in by_tensor} == {1}


@pytest.mark.parametrize("index", [40, -41])
def test_an_index_beyond_the_end_is_refused(index):
    with pytest.raises(IndexError, match=f"index must be below 40, but {index} came"):
        PoisonedDataset(clean(), trigger, rate=0.5)[index]


IMAGE = torch.zeros(1, 4, 4)


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (torch.zeros(3, 1, 4, 4), InputTypeError, "dataset must be a Dataset with a length"),
        (Stream(), InputTypeError, "dataset must be a Dataset with a length and indexes, but"),
        (None, InputTypeError, "dataset must be a Dataset .* but None came"),
        (Items(), InputError, "dataset must hold at least one sample, but none came"),
        (Items(IMAGE), InputTypeError, r"\(input, label\) or \(input, label, id\), but a Tensor"),
        (Items((IMAGE,)), InputTypeError, r"dataset must give \(input, label\) or"),
        (Items((IMAGE, 0), ("x", 0)), InputTypeError, "floating tensors, but 'x' came at index 1"),
        (Items((IMAGE.byte(), 0)), InputTypeError, "dataset must give floating tensors, but"),
        (Items((IMAGE[0], 0)), InputError, r"dataset must give inputs \(C, H, W\), but .*\(4, 4\)"),
        (
            Items((IMAGE, 0), (IMAGE - 1, 1)),
            InputError,
            r"inside the trigger's bounds \(0\.0, 1\.0\), outside of which it clips them, but "
            r"index 1 reaches from -1 to -1; backdoors\.get\('blend', bounds=\.\.\.\) sets them$",
        ),
        (Items((IMAGE, 0.5)), InputTypeError, "labels that are one integer, but 0.5 came at"),
        (Items((IMAGE, True)), InputTypeError, "labels that are one integer, but True came at"),
        (Items((IMAGE, torch.ones(2).int())), InputTypeError, "labels that are one integer, but"),
        (Items((IMAGE, torch.ones(1))), InputTypeError, "labels that are one integer, but"),
        (Items((IMAGE, 0, torch.ones(2))), InputError, "dataset must give ids of one element"),
    ],
)
def test_what_cannot_be_poisoned_is_refused(dataset, error, message):
    with pytest.raises(error, match=message):
        PoisonedDataset(dataset, trigger, rate=0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rate": 1.5}, InputError, "rate must be from 0 to 1, but 1.5 came"),
        ({"rate": -0.1}, InputError, "rate must be from 0 to 1, but -0.1 came"),
        ({"rate": None}, InputTypeError, "rate must be a number, but None came"),
        ({"rate": 0.5, "seed": -1}, InputError, "seed must be at least 0, but -1 came"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        PoisonedDataset(clean(), trigger, **arguments)


def test_what_is_no_trigger_is_refused():
    with pytest.raises(
        InputTypeError, match="trigger must be a backdoor trigger, but 'blend' came"
    ):
        PoisonedDataset(clean(), "blend", rate=0.5)
