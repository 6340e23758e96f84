"""The derivative of a function of maps: that of autograd and of finite differences."""

from __future__ import annotations

import pytest
import torch

from pytest_triguard import attributions
from pytest_triguard.engine.second_order import pull_back
from pytest_triguard.errors import InputError, TriGuardWarning
from pytest_triguard.running import running
from tests.attribution_attacks.table import ATTACKABLE, every_attackable, method
from tests.networks import Quadratic, bare, classifier, images, problem
from tests.sessions import with_settings
from tests.simulated_accelerator import simulated_accelerator


def weights(like):
    return images(tuple(like.shape[1:]), len(like), like.dtype, seed=9) - 0.4


def pulled(subject, inputs, targets, explained, chunk=64):
    """Return the derivative of `sum(w * tanh(map))`, chunk by chunk."""
    fixed = weights(inputs)
    with with_settings(chunk=chunk), running(subject, inputs, targets=targets) as run:
        batch = run.samples.first()
        return pull_back(
            run.model,
            batch,
            lambda rows: explained.gradient_mean(run.model, rows),
            lambda maps, part: (fixed[part] * maps.tanh()).sum((1, 2, 3)),
        )


def test_the_table_names_every_attribution_that_is_a_mean_of_gradients():
    subject, inputs, _ = problem("smooth", 2)
    found = []
    with running(subject, inputs, targets=0) as run:
        for name in attributions.names():
            try:
                attributions.get(name).gradient_mean(run.model, run.samples.first())
            except InputError:
                continue
            found.append(name)
    assert sorted(ATTACKABLE) == found


def test_what_changes_by_jumps_or_is_scaled_has_no_description():
    subject, inputs, _ = problem("smooth", 2)
    with running(subject, inputs, targets=0) as run:
        first = run.samples.first()
        with pytest.raises(InputError, match="keep must be 'all' for an attack through the map"):
            method("ig_uniform", keep="valid_points").gradient_mean(run.model, first)
        with pytest.raises(InputError, match="mode must be 'canonical' for an attack through the"):
            method("unigrad", mode="reference").gradient_mean(run.model, first)


def value(subject, inputs, targets, explained):
    """Return the number that is differentiated, for each sample."""
    return (weights(inputs) * explained(subject, inputs, targets).tanh()).sum((1, 2, 3))


@pytest.mark.parametrize(
    "explained",
    [
        *(method(name) for name in ATTACKABLE),
        method("integrated_gradients", baseline="blur"),
        method("integrated_gradients", rule="gauss_legendre", points=4),
        method("expected_gradients", references=images((3, 6, 7), 4), copies=None),
        method("saliency", output="probability"),
    ],
    ids=lambda each: each.name,
)
def test_the_derivative_is_that_of_finite_differences(explained):
    subject, inputs, targets = problem("smooth", 2)
    # No two pixels are equal: the noise depends on the largest and the smallest.
    inputs = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)).double()
    found = pulled(subject, inputs, targets, explained)
    direction = images(tuple(inputs.shape[1:]), 2, seed=4) - 0.5
    step = 1e-6
    ahead, behind = (
        value(subject, inputs + sign * step * direction, targets, explained) for sign in (1, -1)
    )
    expected = (ahead - behind) / (2 * step)
    assert torch.allclose((found.gradient * direction).sum((1, 2, 3)), expected, rtol=1e-5)
    assert (found.curvature > 0).all()


@every_attackable
def test_the_description_of_a_map_is_the_map(name):
    """Through a linear function the derivative meets the maps that are explained."""
    subject, inputs, targets = problem("conv", 3)
    explained = method(name)
    seen = []

    def note(maps, part):
        seen.append(maps.detach().clone())
        return maps.sum((1, 2, 3))

    with running(subject, inputs, targets=targets) as run:
        batch = run.samples.first()
        pull_back(run.model, batch, lambda rows: explained.gradient_mean(run.model, rows), note)
    assert torch.allclose(seen[0], explained(subject, inputs, targets), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 5])
@every_attackable
def test_the_chunk_does_not_matter_and_bounds_the_pass(name, chunk):
    subject, inputs, targets = problem("smooth", 4)
    explained = method(name)
    expected = pulled(subject, inputs, targets, explained)
    rows = []
    subject.module.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    found = pulled(subject, inputs, targets, explained, chunk)
    assert max(rows[3:]) <= chunk  # after the probe
    assert torch.allclose(found.gradient, expected.gradient, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.curvature, expected.curvature, rtol=1e-9)


def test_a_function_of_the_logits_goes_along_without_a_pass_of_its_own():
    subject, inputs, targets = problem("smooth", 3)
    explained = method("saliency")

    def of_maps(maps, part):
        return maps.square().sum((1, 2, 3))

    def of_logits(logits, part):
        return weights(inputs)[part, 0, 0, 0] * logits.square().sum(1)

    with running(subject, inputs, targets=targets) as run:
        job = (run.model, run.samples.first(), lambda rows: explained.gradient_mean(None, rows))
        alone = pull_back(*job, of_maps).gradient
        before = run.model.passes.copy()
        both = pull_back(*job, of_maps, of_logits=of_logits).gradient
        assert (run.model.passes - before).to_dict() == {"forward": 3, "backward": 6}
    points = inputs.clone().requires_grad_()
    total = of_logits(subject.module(points), slice(None)).sum()
    assert torch.allclose(both, alone + torch.autograd.grad(total, points)[0], rtol=1e-9)


def test_a_function_of_the_logits_asks_for_maps_at_the_samples():
    subject, inputs, targets = problem("smooth", 3)
    explained = method("smoothgrad")
    with running(subject, inputs, targets=targets) as run:
        job = (run.model, run.samples.first(), lambda rows: explained.gradient_mean(None, rows))
        with pytest.raises(TypeError, match="taken at the samples"):
            pull_back(*job, lambda maps, part: maps, of_logits=lambda logits, part: logits)


def test_passes_are_counted():
    subject, inputs, targets = problem("smooth", 4)
    with with_settings(chunk=12), running(subject, inputs, targets=targets) as run:
        explained = method("smoothgrad")
        pull_back(
            run.model,
            run.samples.first(),
            lambda rows: explained.gradient_mean(run.model, rows),
            lambda maps, part: maps.square().sum((1, 2, 3)),
        )
        assert run.model.passes.to_dict() == {"forward": 3 * 4, "backward": 2 * 3 * 4}


def test_a_linear_network_is_flat_but_for_what_multiplies_the_gradient():
    subject, inputs, targets = problem("linear", 3)
    plain = pulled(subject, inputs, targets, attributions.get("saliency"))
    assert not plain.gradient.any()
    assert not plain.curvature.any()
    product = pulled(subject, inputs, targets, attributions.get("gradient_x_input"))
    assert product.gradient.any()
    assert not product.curvature.any()


def test_the_curvature_is_the_largest_part_through_the_gradient():
    form = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)).repeat(2, 1, 1)
    subject = classifier("linear")
    subject.module = Quadratic(form)
    inputs = images((1, 2, 3), 2)
    with running(subject, inputs, targets=0) as run:
        explained = attributions.get("gradient_x_input")
        found = pull_back(
            run.model,
            run.samples.first(),
            lambda rows: explained.gradient_mean(run.model, rows),
            lambda maps, part: maps.sum((1, 2, 3)),
        )
    diagonal = form[0].diagonal().view(1, 2, 3)
    assert torch.allclose(found.gradient, 2 * diagonal * inputs)
    assert torch.allclose(found.curvature, (diagonal * inputs).amax((1, 2, 3)))


def test_when_memory_runs_out_the_chunk_is_halved():
    subject, inputs, targets = problem("smooth", 4)
    explained = method("smoothgrad")
    expected = pulled(subject, inputs, targets, explained)
    inner = bare(subject)

    class Small(torch.nn.Module):
        def forward(self, given):
            if len(given) > 6:
                raise torch.OutOfMemoryError("out of memory")
            return inner(given)

    subject.module = Small()
    with pytest.warns(TriGuardWarning, match="memory ran out with 32 rows"):
        found = pulled(subject, inputs, targets, explained, chunk=32)
    assert torch.allclose(found.gradient, expected.gradient, rtol=1e-9, atol=1e-12)


@every_attackable
def test_an_accelerator_gives_the_derivative_of_the_cpu(name):
    subject, inputs, targets = problem("smooth", 2)
    expected = pulled(subject, inputs, targets, method(name))
    fixed = weights(inputs)
    with (
        simulated_accelerator() as sim,
        with_settings(device="sim", chunk=4),
        running(subject, inputs, targets=targets) as run,
    ):
        batch, there = run.samples.first().to(run.model.device), fixed.to("sim")
        sim.reset()
        found = pull_back(
            run.model,
            batch,
            lambda rows: method(name).gradient_mean(run.model, rows),
            lambda maps, part: (there[part] * maps.tanh()).sum((1, 2, 3)),
        )
        assert sim.host_reads == []
        assert torch.allclose(found.gradient.cpu(), expected.gradient, rtol=1e-9, atol=1e-12)
