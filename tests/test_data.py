"""Data of every kind: read batch by batch, checked as it is read, the same however it comes."""

from __future__ import annotations

import re
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from pytest_triguard import attacks, attributions, metrics
from pytest_triguard.classifier import Classifier
from pytest_triguard.data import Samples
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from tests.networks import SHAPES, classifier, images, problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator

few = settings(max_examples=20, deadline=None)
X, Y = images((1, 3, 4), 10), torch.arange(10) % 4
DATA = TensorDataset(X, Y)


class Named(Dataset):
    """Samples that bring an id."""

    def __init__(self, names=None):
        self.names = names or [f"image-{place}" for place in range(10)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, place):
        return X[place], Y[place], self.names[place]


class Streamed(IterableDataset):
    """Samples without a length."""

    def __init__(self, count=10):
        self.count = count

    def __iter__(self):
        return iter(zip(X[: self.count], Y[: self.count], strict=True))


class Once(IterableDataset):
    """Samples that can be read once."""

    def __init__(self):
        self.left = iter(zip(X, Y, strict=True))

    def __iter__(self):
        return self.left


class Augmented(Dataset):
    """Samples that come out differently every time."""

    def __init__(self, *, named=False):
        self.named = named

    def __len__(self):
        return 10

    def __getitem__(self, place):
        noisy = (X[place] + 0.01 * torch.rand_like(X[place])).clamp(0, 1)
        return (noisy, Y[place], place) if self.named else (noisy, Y[place])


class Own(Dataset):
    """Samples given one by one as a list."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


def together(samples):
    """Return everything that was read, as one: positions, ids, inputs, labels."""
    read = list(samples)
    return (
        [place for each in read for place in each.positions],
        [name for each in read for name in each.ids],
        torch.cat([each.inputs for each in read]),
        torch.cat([each.labels for each in read]),
    )


def fingerprint(*given, **options):
    samples = Samples(*given, **options)
    for _ in samples:
        pass
    return samples.fingerprint


SOURCES = {
    "tensors": lambda: (X, Y),
    "dataset": lambda: (DATA,),
    "loader": lambda: (DataLoader(DATA, batch_size=3),),
    "loader-of-one": lambda: (DataLoader(DATA, batch_size=1),),
    "stream": lambda: (DataLoader(Streamed(), batch_size=4),),
    "dataset-stream": lambda: (Streamed(),),
}
every_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
sized_sources = pytest.mark.parametrize("source", list(SOURCES.values())[:4], ids=list(SOURCES)[:4])


# --- the same however it comes ------------------------------------------------------------------


@every_source
def test_samples_are_read_whole_in_order_and_more_than_once(source):
    samples = Samples(*source())
    for _ in range(2):
        positions, ids, inputs, labels = together(samples)
        assert positions == ids == list(range(10))
        assert torch.equal(inputs, X)
        assert torch.equal(labels, Y)


@every_source
def test_one_of_the_samples_is_read_alone_as_it_is_among_the_others(source):
    samples = Samples(*source())
    for place in (0, 4, 9):
        (one,) = samples.alone(place)
        assert one.positions == one.ids == (place,)
        assert torch.equal(one.inputs[0], X[place])
        assert one.labels.item() == Y[place]
    assert together(samples)[0] == list(range(10))


@every_source
def test_the_fingerprint_is_that_of_the_samples_alone(source):
    assert fingerprint(*source()) == fingerprint(X, Y)


def test_the_length_is_told_where_it_is_known():
    assert Samples(X, Y).count == Samples(DATA).count == 10
    assert Samples(DataLoader(DATA, batch_size=4)).count == 10
    assert Samples(Streamed()).count is None
    assert Samples(DataLoader(DATA, batch_size=4, drop_last=True)).count is None
    batched = TensorDataset(X.view(5, 2, 1, 3, 4), Y.view(5, 2))
    whole = Samples(DataLoader(batched, batch_size=None))
    assert whole.count is None
    assert together(whole)[0] == list(range(10))


def test_the_last_incomplete_batch_may_be_dropped():
    assert together(Samples(DataLoader(DATA, batch_size=4, drop_last=True)))[0] == list(range(8))


def test_batches_that_a_collate_function_emptied_are_passed_over():
    def odd_ones(items):
        kept = [item for item in items if item[1] % 2]
        return (
            torch.stack([each[0] for each in kept]) if kept else X[:0],
            torch.tensor([each[1] for each in kept], dtype=torch.int64),
        )

    loader = DataLoader(DATA, batch_size=1, collate_fn=odd_ones)
    _, _, inputs, labels = together(Samples(loader))
    assert torch.equal(inputs, X[Y % 2 == 1])
    assert set(labels.tolist()) == {1, 3}


@pytest.mark.parametrize("width", [torch.uint8, torch.int16, torch.uint16, torch.uint64])
def test_labels_are_integers_of_any_width(width):
    assert torch.equal(together(Samples(X, Y.to(width)))[3], Y)


CHANGES = {
    "pixel": lambda: (X.clone().index_fill_(0, torch.tensor([9]), 0.5), Y),
    "label": lambda: (X, Y.flip(0)),
    "order": lambda: (X.flip(0), Y.flip(0)),
    "fewer": lambda: (X[:9], Y[:9]),
    "dtype": lambda: (X.float(), Y),
    "shape": lambda: (X.view(10, 1, 4, 3), Y),
    "no-labels": lambda: (X,),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_fingerprint_tells_other_samples_apart(change):
    assert fingerprint(*change()) != fingerprint(X, Y)


def test_the_fingerprint_tells_ids_and_targets_apart_and_not_the_width_of_labels():
    plain = fingerprint(X, Y)
    assert fingerprint(X, Y.to(torch.int32)) == plain
    assert fingerprint(X, Y, ids=range(10)) == plain
    assert fingerprint(X, Y, ids=[f"{place}" for place in range(10)]) != plain
    assert fingerprint(X, Y, targets=1) != plain
    assert fingerprint(X, Y, targets=1) == fingerprint(X, Y, targets=torch.ones(10).long())


def test_there_is_no_fingerprint_before_everything_was_read():
    samples = Samples(X, Y)
    assert samples.fingerprint == ""
    samples.first()
    assert Samples(DataLoader(DATA, batch_size=2)).fingerprint == ""


# --- subsets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_subset_is_the_same_of_tensors_dataset_and_loader(seed):
    found = []
    for source in list(SOURCES.values())[:4]:
        samples = Samples(*source(), samples=4, seed=seed)
        assert (samples.count, samples.total) == (4, 10)
        positions, ids, inputs, labels = together(samples)
        assert positions == ids == sorted(positions)
        assert torch.equal(inputs, X[positions])
        assert torch.equal(labels, Y[positions])
        found.append((positions, samples.fingerprint))
    assert all(each == found[0] for each in found)


def test_the_seed_decides_the_subset_and_every_sample_has_its_turn():
    subsets = [together(Samples(X, Y, samples=4, seed=seed))[0] for seed in range(200)]
    assert together(Samples(X, Y, samples=4, seed=7))[0] == subsets[7]
    counts = np.bincount([place for each in subsets for place in each], minlength=10)
    assert counts.sum() == 800
    assert (abs(counts - 80) < 30).all()


def test_a_larger_subset_holds_the_smaller_one():
    small, large = (set(together(Samples(X, Y, samples=count))[0]) for count in (3, 7))
    assert small < large


class Opened(Dataset):
    """Samples that only a worker that was set up can read."""

    opened = False

    def __len__(self):
        return 10

    def __getitem__(self, place):
        assert Opened.opened
        return X[place], Y[place]


def set_up(worker):
    Opened.opened = True


def test_workers_are_set_up_for_a_subset_as_for_everything():
    loader = DataLoader(Opened(), batch_size=4, num_workers=1, worker_init_fn=set_up)
    assert len(together(Samples(loader, samples=3))[0]) == 3


@sized_sources
def test_a_subset_larger_than_the_data_is_everything(source):
    assert together(Samples(*source(), samples=99))[0] == list(range(10))


def test_a_subset_keeps_ids_and_targets_with_their_samples():
    names = [f"image-{place}" for place in range(10)]
    targets = torch.arange(10)
    samples = Samples(X, Y, samples=4, ids=names, targets=targets)
    for batch in samples:
        assert list(batch.ids) == [names[place] for place in batch.positions]
        assert batch.targets.tolist() == list(batch.positions)
    positions, ids, _, _ = together(Samples(Named(), samples=4))
    assert ids == [names[place] for place in positions]


@pytest.mark.parametrize("given", [Streamed(), DataLoader(DATA, batch_size=3, drop_last=True)])
def test_a_subset_needs_a_known_length(given):
    message = "^samples needs data of known length, but the loader does not tell how long it is$"
    with pytest.raises(InputError, match=message):
        Samples(given, samples=2)


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        range(5, 15),
        list(range(5, 15)),
        torch.arange(5, 15),
        np.arange(5, 15),
        tuple(range(5, 15)),
        list(torch.arange(5, 15)),
        list(np.arange(5, 15)),
    ],
    ids=["range", "list", "tensor", "numpy", "tuple", "list-of-tensors", "list-of-numpy"],
)
def test_ids_are_plain_values_whatever_they_came_in(ids):
    samples = Samples(X, Y, ids=ids)
    found = together(samples)[1]
    assert found == list(range(5, 15))
    assert {type(each) for each in found} == {int}
    (batch,) = samples
    assert batch.keys.tolist() == list(range(5, 15))


@pytest.mark.parametrize("samples", [None, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_with_ids_may_shuffle_and_is_read_in_the_order_of_its_dataset(shuffle, samples):
    """So that what goes by places, as one class for each sample does, stays where it belongs."""
    loader = DataLoader(Named(), batch_size=3, shuffle=shuffle)
    data = Samples(loader, targets=Y, samples=samples)
    positions, ids, inputs, labels = together(data)
    assert data.count == len(positions) == (samples or 10)
    assert positions == sorted(positions)
    assert ids == [f"image-{place}" for place in positions]
    assert torch.equal(inputs, X[positions])
    assert torch.equal(labels, Y[positions])
    assert torch.equal(torch.cat([each.targets for each in data]), Y[positions])
    (one,) = data.alone(2)
    assert one.ids == (ids[2],)


def test_a_shuffled_subset_is_read_in_the_order_of_its_dataset():
    loader = DataLoader(Named(), batch_size=2, sampler=SubsetRandomSampler([7, 1, 4]))
    positions, ids, inputs, _ = together(Samples(loader))
    assert positions == [0, 1, 2]
    assert ids == ["image-1", "image-4", "image-7"]
    assert torch.equal(inputs, X[[1, 4, 7]])


def test_an_attack_on_a_shuffling_loader_finds_the_same_for_every_id():
    subject, inputs, labels = problem("conv", 10)

    class Loaded(Named):
        def __getitem__(self, place):
            return inputs[place], labels[place], self.names[place]

    attack = attacks.get("pgd", eps=0.03, steps=3)
    expected = attack(subject, inputs, labels, ids=Loaded().names)
    loader = DataLoader(Loaded(), batch_size=4, shuffle=True)
    found = attack(subject, loader)
    assert found.success.sum() == expected.success.sum()
    distances = torch.cdist(found.adversarial.flatten(1), expected.adversarial.flatten(1))
    assert (distances.amin(1) < 1e-9).all()


def test_maps_and_metrics_of_a_shuffling_loader_belong_together():
    subject, inputs, labels = problem("conv", 10)

    class Loaded(Named):
        def __getitem__(self, place):
            return inputs[place], labels[place], self.names[place]

    loader, error = DataLoader(Loaded(), shuffle=True), metrics.get("completeness_error")
    method = attributions.get("integrated_gradients", points=4)
    maps = method(subject, loader)
    assert torch.allclose(maps, method(subject, inputs, labels), rtol=1e-9)
    assert torch.allclose(error(maps, subject, loader), error(maps, subject, inputs, labels))


# --- what is refused ----------------------------------------------------------------------------

MANY = [X[0], Y[0], 1, 2]
REFUSED = {
    "list": (
        lambda: ([1.0],),
        InputTypeError,
        "inputs must be a tensor (N, C, H, W), a Dataset or",
    ),
    "array": (lambda: (X.numpy(),), InputTypeError, "inputs must be a tensor (N, C, H, W), a"),
    "flat": (
        lambda: (X.flatten(1),),
        InputError,
        "inputs must have shape (N, C, H, W), but a",
    ),
    "no-pixels": (
        lambda: (X[..., :0],),
        InputError,
        "inputs must have shape (N, C, H, W), but a",
    ),
    "bytes": (
        lambda: ((X * 255).byte(),),
        InputTypeError,
        "inputs must be floating, but torch.uint8 came; for bytes use inputs.float() / 255",
    ),
    "complex": (lambda: (X + 0j,), InputTypeError, "inputs must be floating, but torch.complex128"),
    "empty": (lambda: (X[:0],), InputError, "inputs must hold at least one sample, but none came"),
    "empty-dataset": (
        lambda: (Own([]),),
        InputError,
        "inputs must hold at least one sample, but no",
    ),
    "empty-stream": (
        lambda: (Streamed(0),),
        InputError,
        "inputs must hold at least one sample, but",
    ),
    "labels-list": (
        lambda: (X, [0] * 10),
        InputTypeError,
        "labels must be a tensor (N,), but [0, 0,",
    ),
    "labels-column": (
        lambda: (X, Y.view(10, 1)),
        InputError,
        "labels must have shape (10,) to go with the inputs, but a Tensor of shape (10, 1) and",
    ),
    "labels-few": (
        lambda: (X, Y[:9]),
        InputError,
        "labels must have shape (10,) to go with the in",
    ),
    "labels-float": (
        lambda: (X, Y / 1),
        InputTypeError,
        "labels must be integers, but torch.float",
    ),
    "labels-bool": (
        lambda: (X, Y > 1),
        InputTypeError,
        "labels must be integers, but torch.bool c",
    ),
    "labels-low": (lambda: (X, Y - 1), InputError, "labels must be classes from 0 on, but -1 came"),
    "labels-doubled": (
        lambda: (DATA, Y),
        InputError,
        "labels must come from the loader itself, but were given beside it",
    ),
    "loader-labels": (
        lambda: (TensorDataset(X, torch.zeros(10, 4)),),
        InputTypeError,
        "labels must be integers, but torch.float32 came",
    ),
    "loader-onehot": (
        lambda: (TensorDataset(X, torch.zeros(10, 4).long()),),
        InputError,
        "labels must have shape (10,), but a Tensor of shape (10, 4) and dtype torch.int64 came",
    ),
    "loader-names": (
        lambda: (Own([(X[0], "cat"), (X[1], "dog")]),),
        InputTypeError,
        "the loader's labels must be a tensor, but",
    ),
    "loader-dict": (
        lambda: (Own([{"image": X[0]}]),),
        InputTypeError,
        "inputs must be a loader of input, (input, label) or (input, label, id), but a batch of",
    ),
    "loader-four": (
        lambda: (Own([MANY]),),
        InputTypeError,
        "inputs must be a loader of input, (input, label) or (input, label, id), but a batch of 4",
    ),
    "loader-flat": (
        lambda: (Own([(X[0, 0], 1)]),),
        InputError,
        "inputs must have shape (N, C, H, W",
    ),
    "loader-of-single-samples": (
        lambda: (DataLoader(DATA, batch_size=None),),
        InputError,
        "inputs must have shape (N, C, H, W), but a Tensor of shape (1, 3, 4) and dtype",
    ),
    "sparse": (
        lambda: (X.to_sparse(),),
        InputTypeError,
        "inputs must be a dense tensor with values, but a torch.sparse_coo one on cpu came",
    ),
    "without-values": (
        lambda: (X.to("meta"),),
        InputTypeError,
        "inputs must be a dense tensor with values, but a torch.strided one on meta came",
    ),
    "dataset-of-objects": (
        lambda: (Own([(object(), 1)]),),
        InputTypeError,
        "inputs must be a Dataset of (input, label) or (input, label, id) with tensors of one "
        "shape as inputs, but its items make no batch: default_collate: batch must contain tensors",
    ),
    "dataset-of-sizes": (
        lambda: (Own([(X[0], 1), (X[0, :, :2], 1)]),),
        InputTypeError,
        "inputs must be a Dataset of (input, label) or (input, label, id) with tensors of one "
        "shape as inputs, but its items make no batch: stack expects each tensor to be equal size",
    ),
    "dataset-without-length": (
        lambda: (Dataset(),),
        InputTypeError,
        "inputs must be a Dataset with a length or an IterableDataset, but a Dataset without __len",
    ),
    "ids-twice-as-tensors": (
        lambda: (X[:2], Y[:2], [torch.tensor(1), torch.tensor(1)]),
        InputError,
        "ids must be unique, but 1 came twice",
    ),
    "loader-sizes": (
        lambda: (DataLoader(Own([(X[0], 1), (X[0, :, :2], 1)]), batch_size=1),),
        InputError,
        "inputs must be alike in all batches, but shape (1, 3, 4) of torch.float64 with labels and "
        "then shape (1, 2, 4) of torch.float64 with labels came",
    ),
    "loader-some-labels": (
        lambda: (DataLoader(Own([(X[0], 1), X[0]]), batch_size=1),),
        InputError,
        "inputs must be alike in all batches, but shape (1, 3, 4) of torch.float64 with labels and "
        "then shape (1, 3, 4) of torch.float64 without labels came",
    ),
    "shuffled": (
        lambda: (DataLoader(DATA, batch_size=3, shuffle=True),),
        InputError,
        "inputs must be a loader that does not shuffle, but its sampler is a RandomSampler; use "
        "shuffle=False, or let it bring (input, label, id)",
    ),
    "sampled": (
        lambda: (DataLoader(DATA, batch_size=1, sampler=SubsetRandomSampler(range(2))),),
        InputError,
        "inputs must be a loader that does not shuffle, but its sampler is a SubsetRandomSampler;",
    ),
    "weighted": (
        lambda: (DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 10, 10)),),
        InputError,
        "inputs must be a loader that does not shuffle, but its sampler is a WeightedRandomSampler",
    ),
    "weighted-named": (
        lambda: (DataLoader(Named(), sampler=WeightedRandomSampler([1.0] * 10, 10)),),
        InputError,
        "inputs must be a loader that does not shuffle, but its sampler is a WeightedRandomSampler"
        "; use shuffle=False",
    ),
    "replaced-named": (
        lambda: (DataLoader(Named(), sampler=RandomSampler(DATA, num_samples=4)),),
        InputError,
        "inputs must be a loader that does not shuffle, but its sampler is a RandomSampler; use "
        "shuffle=False",
    ),
    "own-shuffle": (
        lambda: (DataLoader(DATA, batch_size=10, sampler=Shuffling()),),
        InputError,
        "inputs must be a loader that gives the same samples every time, but its first batch came "
        "out differently twice; switch shuffling and augmentation off, or let it bring (input,",
    ),
    "augmented": (
        lambda: (Augmented(),),
        InputError,
        "inputs must be a loader that gives the same samples every time, but its first batch came "
        "out differently twice",
    ),
    "augmented-named": (
        lambda: (Augmented(named=True),),
        InputError,
        "inputs must be a loader that gives the same samples every time, but its first batch came "
        "out differently twice; switch shuffling and augmentation off",
    ),
    "once": (
        lambda: (DataLoader(Once(), batch_size=10),),
        InputError,
        "inputs must be a loader that gives the same samples every time, but its first batch came",
    ),
}


class Shuffling:
    """A sampler that shuffles without saying so."""

    def __init__(self):
        self.calls = 0

    def __len__(self):
        return 10

    def __iter__(self):
        self.calls += 1
        return iter(np.roll(np.arange(10), self.calls).tolist())


def refused(error, message):
    return pytest.raises(error, match=f"^{re.escape(message)}")


@pytest.mark.parametrize(("given", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_data_is_refused_by_name(given, error, message):
    with refused(error, message) as caught:
        inputs, labels, ids = (*given(), None, None)[:3]
        list(Samples(inputs, labels, ids=ids))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["tensors", "dataset", "loader"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_sample_that_is_not_finite_is_refused_by_its_id(value, where):
    inputs = X.clone()
    inputs[6, 0, 1, 1] = value
    data = TensorDataset(inputs, Y)
    given = {"tensors": (inputs, Y), "dataset": (data,), "loader": (DataLoader(data, 4),)}[where]
    with refused(InputError, "inputs must be finite, but sample 6 holds NaN or infinity"):
        list(Samples(*given))
    inputs[0] = value
    with refused(InputError, "inputs must be finite, but sample 0 holds NaN or infinity"):
        list(Samples(*given))


def test_a_sample_outside_the_bounds_is_refused_with_advice():
    inputs = X.clone()
    inputs[7, 0, 0, 0] = -2.5
    with pytest.raises(InputError) as caught:
        list(Samples(inputs, Y, ids=[f"image-{place}" for place in range(10)]))
    highest = float(inputs[7].max())
    assert str(caught.value) == (
        "inputs must lie inside the classifier's bounds [0, 1], but sample image-7 reaches from "
        f"-2.5 to {highest:g}; if the data are normalised, drop Normalize from them and give mean "
        "and std to the Classifier"
    )


@pytest.mark.parametrize(("excess", "refuses"), [(5e-7, False), (1e-5, True)])
@pytest.mark.parametrize("sign", [1, -1])
def test_bounds_are_tolerant_to_rounding(sign, excess, refuses):
    edge = torch.full((2, 1, 2, 2), 1.0 if sign > 0 else 0.0, dtype=torch.float64) + sign * excess
    if refuses:
        with refused(InputError, "inputs must lie inside the classifier's bounds"):
            list(Samples(edge))
    else:
        assert len(list(Samples(edge))) == 1


def test_bounds_may_be_per_channel():
    inputs = torch.stack([X[:, 0], X[:, 0] * 4 - 2], 1)
    assert list(Samples(inputs, bounds=((0.0, -2.0), (1.0, 2.0))))
    with refused(InputError, "inputs must lie inside"):
        list(Samples(inputs.flip(1), bounds=((0.0, -2.0), (1.0, 2.0))))
    with refused(InputError, "inputs must have the 3 channels the bounds name, but a Tensor of"):
        list(Samples(inputs, bounds=((0.0,) * 3, (1.0,) * 3)))


def test_inputs_must_be_of_the_dtype_of_the_classifier():
    with refused(InputTypeError, "inputs must be torch.float32 like the classifier's parameters"):
        list(Samples(X, dtype=torch.float32))
    assert list(Samples(X.half(), dtype=torch.float16))


def test_a_classifier_of_several_dtypes_says_itself_what_it_takes():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, dtype=torch.float16))
            self.layer = nn.Linear(4, 3)

        def forward(self, inputs):
            return self.layer(inputs.flatten(1)) * self.scale.float()

    subject, inputs = Classifier(Scaled()), torch.rand(3, 1, 2, 2)
    assert subject.dtype is None
    assert attributions.get("saliency")(subject, inputs, 1).dtype == torch.float32
    with refused(ModelError, "the module Scaled must take inputs of shape (N, 1, 2, 2) and dtype"):
        attributions.get("saliency")(subject, inputs.double(), 1)


def test_labels_are_checked_against_the_classes_once_they_are_known():
    samples = Samples(DataLoader(DATA, batch_size=3))
    assert together(samples)[0] == list(range(10))
    samples.num_classes = 3
    with refused(InputError, "labels must be classes from 0 to 2, but 3 came"):
        list(samples)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (range(9), InputError, "ids must name 10 samples, but 9 came"),
        (7, InputTypeError, "ids must be one id per sample, but 7 came"),
        ("0123456789", InputTypeError, "ids must be one id per sample, but '0123456789' came"),
        ([[place] for place in range(10)], InputTypeError, "ids must be numbers or text, but [0]"),
        ([*range(9), 0], InputError, "ids must be unique, but 0 came twice"),
        (["a"] * 10, InputError, "ids must be unique, but 'a' came twice"),
    ],
    ids=["few", "number", "text", "lists", "repeated", "alike"],
)
def test_bad_ids_are_refused_by_name(ids, error, message):
    with refused(error, message):
        list(Samples(X, Y, ids=ids))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 10])
def test_a_loaders_ids_must_be_unique_over_all_batches(batch_size):
    loader = DataLoader(Named([0, 1, 2, 3, 4, 5, 6, 7, 8, 0]), batch_size=batch_size)
    with refused(InputError, "ids must be unique, but 0 came twice"):
        list(Samples(loader))


@pytest.mark.parametrize("given", [DATA, DataLoader(DATA, batch_size=3)])
def test_ids_must_come_from_the_loader_itself(given):
    with refused(InputError, "ids must come from the loader itself, but were given beside it"):
        Samples(given, ids=range(10))


@pytest.mark.parametrize(
    ("samples", "error", "message"),
    [
        (0, InputError, "samples must be at least 1, but 0 came"),
        (2.0, InputTypeError, "samples must be a whole number, but 2.0 came"),
    ],
)
def test_a_bad_size_of_the_subset_is_refused(samples, error, message):
    with refused(error, message):
        Samples(X, Y, samples=samples)


# --- memory, devices, generators ----------------------------------------------------------------


@pytest.mark.parametrize("read", ["data", "attack"])
def test_a_loader_is_streamed_and_never_held_whole(read):
    inputs, labels = images(SHAPES["linear"], 60), torch.arange(60) % 4
    batches: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def collate(items):
        nonlocal most
        batch = torch.stack([image for image, _ in items])
        batches.add(batch)
        most = max(most, len(batches))
        return batch, torch.stack([label for _, label in items])

    loader = DataLoader(TensorDataset(inputs, labels), batch_size=2, collate_fn=collate)
    if read == "data":
        assert sum(len(batch) for batch in Samples(loader)) == 60
    else:
        with with_settings(chunk=4):
            attacks.get("bim", eps=0.01, steps=2)(classifier("linear"), loader)
    assert most <= 4


@few
@given(size=st.integers(1, 12), count=st.integers(1, 12))
def test_the_order_of_a_loader_is_kept_for_every_batch_size(size, count):
    loader = DataLoader(TensorDataset(X[:count], Y[:count]), batch_size=size)
    assert together(Samples(loader))[0] == list(range(min(count, 10)))


def test_tensors_on_an_accelerator_are_data_too():
    with simulated_accelerator() as sim:
        moved = Samples(X.to("sim"), Y.to("sim"), targets=Y.to("sim"))
        (batch,) = moved
        assert batch.inputs.device.type == "sim"
        assert batch.labels.tolist() == Y.tolist()
        subset = Samples(X.to("sim"), Y, targets=Y.to("sim"), samples=3)
        assert together(subset)[0] == together(Samples(X, Y, samples=3))[0]
        assert moved.fingerprint == fingerprint(X, Y, targets=Y)
        sim.reset()


def test_inputs_that_require_a_gradient_are_read_without_it():
    (batch,) = Samples(X.clone().requires_grad_(), Y)
    assert not batch.inputs.requires_grad


def test_reading_a_loader_does_not_change_the_random_state_of_a_check():
    subject = classifier("linear")
    loader = DataLoader(TensorDataset(images(SHAPES["linear"], 6), Y[:6]), batch_size=2)
    before = torch.get_rng_state()
    attacks.get("fgsm", eps=0.01)(subject, loader)
    assert torch.equal(torch.get_rng_state(), before)
