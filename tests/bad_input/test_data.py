"""What assertions refuse of classifiers and data.

One sentence names the argument, what came, and what was expected.
"""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pytest_triguard import Classifier, assert_accuracy
from pytest_triguard.errors import InputError, InputTypeError, ModelError
from tests.assertions import TABLE, every_assertion
from tests.bad_input.problem import COUNT, X, Y, network
from tests.networks import images
from tests.sessions import with_settings

LABELLED = [case for case in TABLE if case.labels != "none"]


def holed(value):
    changed = X.clone()
    changed[2, 0, 1, 1] = value
    return changed


def loader(*tensors, **options):
    return DataLoader(TensorDataset(*tensors), batch_size=3, **options)


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


INPUTS = {
    "NaN": (holed(math.nan), InputError, "inputs must be finite, but sample 2 holds NaN or inf"),
    "infinity": (holed(math.inf), InputError, "inputs must be finite, but sample 2 holds NaN or"),
    "outside": (
        holed(1.5),
        InputError,
        "inputs must lie inside the classifier's bounds [0, 1], but sample 2 reaches from ",
    ),
    "integers": (
        (255 * X).byte(),
        InputTypeError,
        "inputs must be floating, but torch.uint8 came; for bytes use inputs.float() / 255",
    ),
    "dtype": (
        X.float(),
        InputTypeError,
        "inputs must be torch.float64 like the classifier's parameters, but torch.float32 came",
    ),
    "flat": (
        X.flatten(1),
        InputError,
        "inputs must have shape (N, C, H, W), but a Tensor of shape (8, 16) and dtype",
    ),
    "no pixels": (X[..., :0], InputError, "inputs must have shape (N, C, H, W), but a Tensor of"),
    "size": (
        images((1, 5, 5), COUNT),
        ModelError,
        "the module Sequential must take inputs of shape (N, 1, 5, 5) and dtype torch.float64, but",
    ),
    "empty": (X[:0], InputError, "inputs must hold at least one sample, but none came"),
    "empty dataset": (
        TensorDataset(X[:0], Y[:0]),
        InputError,
        "inputs must hold at least one sample, but none came",
    ),
    "empty stream": (
        Stream([]),
        InputError,
        "inputs must hold at least one sample, but none came",
    ),
    "array": (
        X.numpy(),
        InputTypeError,
        "inputs must be a tensor (N, C, H, W), a Dataset or a DataLoader, but a ndarray of shape",
    ),
    "shuffling": (
        loader(X, Y, shuffle=True),
        InputError,
        "inputs must be a loader that does not shuffle, but its sampler is a RandomSampler; use",
    ),
    "four parts": (
        loader(X, Y, Y, Y),
        InputTypeError,
        "inputs must be a loader of input, (input, label) or (input, label, id), but a batch of 4",
    ),
}


@pytest.mark.parametrize("bad", INPUTS)
@every_assertion
def test_inputs(case, bad, subject, refused):
    inputs, error, message = INPUTS[bad]
    given = Y[: len(inputs)] if isinstance(inputs, torch.Tensor) else None
    refused(error, message, case, subject, inputs, given)


LABELS = {
    "missing": (None, InputError, "labels are missing: give them beside the inputs, or in the loa"),
    "list": (Y.tolist(), InputTypeError, "labels must be a tensor (N,), but [0, 1, 2, 0, 1, 2,"),
    "too few": (
        Y[:-1],
        InputError,
        "labels must have shape (8,) to go with the inputs, but a Tensor of shape (7,) and dtype",
    ),
    "one-hot": (functional.one_hot(Y), InputError, "labels must have shape (8,) to go with the in"),
    "floating": (Y.double(), InputTypeError, "labels must be integers, but torch.float64 came"),
    "truth values": (Y > 0, InputTypeError, "labels must be integers, but torch.bool came"),
    "too large": (Y + 1, InputError, "labels must be classes from 0 to 2, but 3 came"),
    "negative": (Y - 1, InputError, "labels must be classes from 0"),
}


@pytest.mark.parametrize("bad", LABELS)
@pytest.mark.parametrize("case", LABELLED, ids=lambda case: case.title)
def test_labels(case, bad, subject, refused):
    labels, error, message = LABELS[bad]
    if labels is None and case.labels == "keyword":
        assert len(case(subject, X).values) == COUNT  # the predictions are explained
    else:
        refused(error, message, case, subject, X, labels)


@pytest.mark.parametrize("data", [TensorDataset(X, Y), loader(X, Y)], ids=["dataset", "loader"])
@pytest.mark.parametrize("case", LABELLED, ids=lambda case: case.title)
def test_labels_that_come_twice(case, data, subject, refused):
    message = "labels must come from the loader itself, but were given beside it"
    refused(InputError, message, case, subject, data, Y)


class Augmenting(TensorDataset):
    def __getitem__(self, place):
        inputs, label = super().__getitem__(place)
        return (inputs + torch.rand(()) * 1e-3).clamp(0, 1), label


@every_assertion
def test_a_loader_that_augments(case, subject, refused):
    message = "inputs must be a loader that gives the same samples every time, but its first batch"
    refused(InputError, message, case, subject, DataLoader(Augmenting(X, Y), batch_size=3))


IDS = {
    "too few": ([1, 2], InputError, "ids must name 8 samples, but 2 came"),
    "twice": ([1, *range(1, 8)], InputError, "ids must be unique, but 1 came twice"),
    "no list": (7, InputTypeError, "ids must "),
    "lists": ([[place] for place in range(8)], InputTypeError, "ids must "),
}


@pytest.mark.parametrize("bad", IDS)
@every_assertion
def test_ids(case, bad, subject, refused):
    ids, error, message = IDS[bad]
    refused(error, message, case, subject, X, Y, ids=ids)


@every_assertion
def test_ids_beside_a_loader(case, subject, refused):
    message = "ids must come from the loader itself, but were given beside it"
    refused(InputError, message, case, subject, loader(X, Y), ids=range(COUNT))


class Module(nn.Module):
    """A network to be spoilt."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, inputs):
        return self.spoilt(inputs, self.network(inputs))


class Pair(Module):
    def spoilt(self, inputs, logits):
        return logits, inputs


class OneLogit(Module):
    def spoilt(self, inputs, logits):
        return logits[:, :1]


class Integers(Module):
    def spoilt(self, inputs, logits):
        return logits.long()


class NaN(Module):
    def spoilt(self, inputs, logits):
        return logits * torch.nan


class BatchDependent(Module):
    def spoilt(self, inputs, logits):
        return logits - logits.mean(0)


class Random(Module):
    def spoilt(self, inputs, logits):
        return logits + torch.rand_like(logits)


class Dropout(Module):
    def spoilt(self, inputs, logits):
        return functional.dropout(logits, training=True)


class Growing(Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def spoilt(self, inputs, logits):
        self.calls += 1
        return logits


MODULES = {
    Pair: "the module Pair must return one tensor of logits (N, K), but a tuple came",
    OneLogit: "the module OneLogit must return floating logits of shape (8, K) with K >= 2, but a",
    Integers: "the module Integers must return floating logits of shape (8, K) with K >= 2, but a",
    NaN: "the module NaN must give finite logits, but NaN or infinity came",
    BatchDependent: "the module BatchDependent is batch-dependent: the logits of one sample change",
    Random: "the module Random is random: two calls on the same inputs gave logits that",
    Dropout: "the module Dropout is random: two calls on the same inputs gave logits that",
    Growing: "the module Growing changes its buffer 'calls' in its forward pass, although it is in",
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
@every_assertion
def test_modules(case, module, refused):
    message = MODULES[module].replace("(8, K)", "(3, K)")
    refused(ModelError, message, case, Classifier(module()), X, Y)


@every_assertion
def test_a_module_in_place_of_a_classifier(case, refused):
    message = "classifier must be a pytest_triguard.Classifier, but Sequential("
    refused(InputTypeError, message, case, nn.Sequential(), X, Y)


@every_assertion
def test_too_many_names_of_classes(case, refused):
    named = Classifier(network(), classes=["cat", "dog"])
    message = "classes must name the 3 classes of the module, but 2 came"
    refused(InputError, message, case, named, X, Y)


def test_samples_of_a_stream_that_does_not_tell_its_length(subject):
    stream = Stream([(each, label) for each, label in zip(X, Y, strict=True)])
    with (
        with_settings(samples=3),
        pytest.raises(InputError, match=r"^samples needs data of known length, but the loader do"),
    ):
        assert_accuracy(subject, stream, at_least=0)
