"""The simulated accelerator computes the CPU's numbers, refuses what a real one refuses, counts."""

from __future__ import annotations

import copy
import importlib
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.simulated_accelerator import Call, simulated_accelerator


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.conv2(self.relu(self.norm1(self.conv1(x)))))


def network():
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Softplus(), nn.MaxPool2d(2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4)]
    return nn.Sequential(*stem, Residual(3), *head).eval()


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def derivatives(module, x):
    """Logits, input gradient, and the gradient of the squared gradient."""
    x = x.detach().requires_grad_()
    logits = module(x)
    score = F.log_softmax(logits, dim=1)[:, 0].sum()
    (gradient,) = torch.autograd.grad(score, x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), x)
    return logits, gradient, second


def assert_same(actual, expected):
    assert actual.device == torch.device("sim", 0)
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.cpu(), expected)


LAYERS = {
    "conv": nn.Conv2d(2, 3, 3, stride=2, padding=1, groups=1),
    "linear": nn.Linear(6, 4),
    "batch_norm": nn.BatchNorm2d(2),
    "relu": nn.ReLU(),
    "relu_inplace": nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)),
    "max_pool": nn.MaxPool2d(2),
    "avg_pool": nn.AvgPool2d(3, stride=1),
    "adaptive_avg_pool": nn.AdaptiveAvgPool2d(1),
    "adaptive_avg_pool_uneven": nn.AdaptiveAvgPool2d((4, 5)),
    "flatten": nn.Flatten(),
    "dropout": nn.Dropout(),
    "layer_norm": nn.LayerNorm(6),
    "upsample": nn.Upsample(scale_factor=2, mode="bilinear"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_and_its_input_gradient_equal_the_cpu(name):
    layer = copy.deepcopy(LAYERS[name]).eval()
    x = images(3, 2, 6, 6).requires_grad_()
    expected = layer(x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    with simulated_accelerator():
        moved = x.detach().to("sim").requires_grad_()
        actual = layer.to("sim")(moved)
        (gradient,) = torch.autograd.grad(actual.square().sum(), moved)
        assert_same(actual, expected)
        assert_same(gradient, expected_gradient)


def test_a_residual_network_its_gradient_and_double_backward_equal_the_cpu():
    module, x = network(), images(3, 1, 8, 8)
    expected = derivatives(module, x)
    with simulated_accelerator() as sim:
        moved = x.to("sim")
        module.to("sim")
        sim.reset()
        actual = derivatives(module, moved)
        assert sim.host_reads == sim.uploads == sim.cpu_factories == []
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)


def test_backward_fills_the_parameters_gradients():
    module, x = network(), images(3, 1, 8, 8)
    module(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    with simulated_accelerator():
        module.to("sim")(x.to("sim")).sum().backward()
        for parameter, gradient in zip(module.parameters(), expected, strict=True):
            assert_same(parameter.grad, gradient)


def floats(device):
    return torch.linspace(-2, 2, 12, device=device).view(3, 4)


def integers(device, dtype):
    return torch.arange(-6, 6, device=device, dtype=dtype).view(3, 4)


def mixed_bits(device, dtype):
    x = integers(device, dtype)
    x *= 0x2545F49
    x ^= x >> 5
    x &= 0x7FFFFF
    x |= 1
    x <<= 2
    return x.bitwise_xor_(~x)


def written_through_a_view(device):
    x = floats(device)
    rows = x[1:]
    rows.t()[0].mul_(3)
    x.view(-1)[::5] = 7.0
    rows[0, 1:] += x[0, :3]
    return x


def masked(device):
    x = floats(device)
    x[x > 1] = 0.5
    return x.masked_fill(x < -1, -0.5)[x != 0.5]


COMPUTATIONS = {
    "float32": lambda d: floats(d) * 2 - 1 / (floats(d) + 3),
    "float64": lambda d: floats(d).double().exp() + 1e-12,
    "int32": lambda d: integers(d, torch.int32) // 2 + integers(d, torch.int32) % 5,
    "int64": lambda d: 7 - integers(d, torch.int64) ** 2,
    "bits32": lambda d: mixed_bits(d, torch.int32),
    "bits64": lambda d: mixed_bits(d, torch.int64),
    "bits_of_floats": lambda d: floats(d).view(torch.int32) >> 9,
    "to_float": lambda d: integers(d, torch.int64).to(torch.float32) * 2**-24,
    "in_place": lambda d: floats(d).mul_(2).add_(1).clamp_(-1, 1).sub_(0.25).sign_(),
    "views": written_through_a_view,
    "masks": masked,
    "changed_shape": lambda d: floats(d).unsqueeze_(1).squeeze_().t_() + 1,
    "index_select": lambda d: floats(d).index_select(0, torch.tensor([2, 0], device=d)),
    "index_copy_": lambda d: floats(d).index_copy_(0, torch.arange(2, device=d), -floats(d)[1:]),
    "index_list": lambda d: floats(d)[:, [2, 1, 0]],
    "gather": lambda d: floats(d).gather(1, torch.arange(3, device=d)[:, None]),
    "where": lambda d: torch.where(floats(d) > 0, floats(d), floats(d).new_zeros(())),
    "where_scalar": lambda d: torch.where(floats(d) > 0, 1.0, floats(d)),
    "reductions": lambda d: floats(d).amax(1) + floats(d).std(1) + floats(d).abs().sum(1),
    "sort": lambda d: floats(d).sin().argsort(dim=1, descending=True, stable=True),
    "topk": lambda d: floats(d).cos().topk(2).values,
    "pad": lambda d: F.pad(floats(d)[None], (1, 2), mode="reflect"),
    "pad_constant": lambda d: F.pad(floats(d), (1, 2, 0, 1), value=3.0),
    "conv2d": lambda d: F.conv2d(floats(d)[None, None], torch.ones(2, 1, 2, 2, device=d)),
    "softmax": lambda d: floats(d).softmax(1) + F.log_softmax(floats(d), dim=1),
    "cross_entropy": lambda d: F.cross_entropy(floats(d), torch.arange(3, device=d)),
    "full": lambda d: torch.full((2,), 3.0, device=d) + torch.full_like(floats(d)[0, :2], 2),
    "empty_shape": lambda d: torch.cat([torch.zeros(0, 4, device=d), floats(d)]),
    "from_python": lambda d: torch.tensor([[1.5, 2.5]], device=d) + torch.as_tensor([1], device=d),
    "new_tensor": lambda d: floats(d).new_tensor([1, 2]),
    "einsum": lambda d: torch.einsum("ij,kj->ik", floats(d), floats(d)),
    "out": lambda d: torch.add(floats(d), 1, out=torch.empty(3, 4, device=d)),
    "random": lambda d: torch.manual_seed(3) and torch.rand(2, 3, device=d),
}


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_a_computation_equals_the_cpu(name):
    compute = COMPUTATIONS[name]
    expected = compute("cpu")
    with simulated_accelerator() as sim:
        actual = compute("sim")
        assert sim.cpu_factories == []
        assert_same(actual, expected)


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.inference_mode(mode=False)]
)
def test_every_gradient_mode_gives_the_cpu_logits(mode):
    module, x = network(), images(3, 1, 8, 8)
    with mode():
        expected = module(x)
    with simulated_accelerator() as sim:
        module.to("sim")
        x = x.to("sim")
        sim.reset()
        with mode():
            actual = module(x)
            assert sim.host_reads == []
            assert_same(actual, expected)


def test_gradients_work_within_disabled_inference_mode():
    module, x = network(), images(3, 1, 8, 8)
    expected = derivatives(module, x)
    with simulated_accelerator(), torch.inference_mode(), torch.inference_mode(mode=False):
        actual = derivatives(module.to("sim"), x.to("sim"))
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)


def test_backward_passes_stay_in_the_calling_thread():
    seen = []
    with simulated_accelerator(), torch.inference_mode(mode=False):
        x = torch.ones(2, device="sim", requires_grad=True)
        y = x * 2
        y.register_hook(lambda gradient: seen.append(threading.get_ident()))
        y.sum().backward()
    assert seen == [threading.get_ident()]


def test_saved_parameters_can_be_put_back():
    module, x = network(), images(2, 1, 8, 8)
    expected = module(x)
    saved = [dict(each._parameters) for each in module.modules()]
    buffers = [dict(each._buffers) for each in module.modules()]
    with simulated_accelerator():
        module.to("sim")
        assert {p.device.type for p in module.parameters()} == {"sim"}
        assert all(isinstance(p, nn.Parameter) for p in module.parameters())
        for each, parameters, tensors in zip(module.modules(), saved, buffers, strict=True):
            each._parameters.update(parameters)
            each._buffers.update(tensors)
        assert torch.equal(module(x), expected)
        assert torch.equal(module.to("sim").to("cpu")(x), expected)


def test_a_deep_copy_is_independent_and_on_the_device():
    with simulated_accelerator() as sim:
        layer = nn.Linear(2, 1).to("sim")
        sim.reset()
        twin = copy.deepcopy(layer)
        assert sim.host_reads == sim.cpu_factories == []
        assert isinstance(twin.weight, nn.Parameter)
        assert twin.weight.requires_grad
        with torch.no_grad():
            twin.weight.zero_()
        assert layer.weight.device == twin.weight.device
        assert bool(layer.weight.any())


MIXED = {
    "pointwise": lambda a, b: a + b,
    "reversed": lambda a, b: b - a,
    "in_place": lambda a, b: a.mul_(b),
    "cpu_written": lambda a, b: b.mul_(a),
    "cpu_scalar_written": lambda a, b: torch.zeros(()).add_(a.sum()),
    "scalar_of_the_device": lambda a, b: b * a.sum(),
    "matrix": lambda a, b: a @ b,
    "concatenation": lambda a, b: torch.cat([a, b]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "index": lambda a, b: a[torch.tensor([0, 1])],
    "scalar_index": lambda a, b: a.index_select(0, torch.tensor(1)),
    "convolution": lambda a, b: F.conv2d(a[None, None], b[None, None]),
    "out": lambda a, b: torch.add(a, a, out=b),
    "module_left_behind": lambda a, b: nn.Linear(2, 2)(a),
    "normalisation": lambda a, b: (a - torch.tensor([0.5, 0.25])) / 2,
}


@pytest.mark.parametrize("name", MIXED)
def test_operands_on_two_devices_are_refused(name):
    with simulated_accelerator():
        a, b = torch.ones(2, 2, device="sim"), torch.ones(2, 2)
        with pytest.raises(RuntimeError, match=r"same device.*sim:0 and cpu"):
            MIXED[name](a, b)


def test_mixed_devices_in_a_backward_pass_are_refused():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.ones(3)

    with simulated_accelerator():
        x = torch.ones(3, device="sim", requires_grad=True)
        with pytest.raises(RuntimeError, match="sim:0 and cpu"):
            Wrong.apply(x).sum().backward()


def test_a_cpu_scalar_is_a_legal_pointwise_operand():
    with simulated_accelerator() as sim:
        x = torch.ones(2, device="sim")
        half = torch.tensor(0.5)
        assert (x * half).tolist() == [0.5, 0.5]
        assert (half + x.sum()).device.type == "sim"
        assert x.masked_fill(x > 0, half).tolist() == [0.5, 0.5]
        assert sim.uploads == sim.cpu_factories == []


READS = {
    "item": (lambda x: x[0].item(), ["_local_scalar_dense"]),
    "float": (lambda x: float(x.sum()), ["_local_scalar_dense"]),
    "format": (lambda x: f"{x.sum():.2f}", ["_local_scalar_dense"]),
    "bool_any": (lambda x: bool((x > 0).any()), ["_local_scalar_dense"]),
    "is_nonzero": (lambda x: x[0].is_nonzero(), ["_local_scalar_dense"]),
    "scalar_index": (lambda x: x[(x > 9).sum()], ["_local_scalar_dense"]),
    "nonzero": (lambda x: x.nonzero(), ["nonzero"]),
    "nonzero_tuple": (lambda x: x.nonzero(as_tuple=True), ["nonzero"]),
    "where_condition": (lambda x: torch.where(x > 0), ["nonzero"]),
    "masked_select": (lambda x: x.masked_select(x > 0), ["masked_select"]),
    "mask_read": (lambda x: x[x > 0], ["index"]),
    "mask_written": (lambda x: x.__setitem__(x > 0, x.new_ones(2)), ["index_put_"]),
    "unique": (lambda x: x.unique(), ["_unique2"]),
    "unique_consecutive": (lambda x: x.unique_consecutive(), ["unique_consecutive"]),
    "equal": (lambda x: torch.equal(x, x), ["equal"]),
    "allclose": (lambda x: torch.allclose(x, x), ["allclose"]),
    "bincount": (lambda x: x.long().bincount(), ["bincount"]),
    "repeats": (lambda x: x.repeat_interleave(x.long()), ["repeat_interleave"]),
    "cpu": (lambda x: x.cpu(), ["_to_copy"]),
    "to": (lambda x: x.to("cpu", torch.float64), ["_to_copy"]),
    "copy_": (lambda x: torch.empty(3).copy_(x), ["copy_"]),
    "tolist": (lambda x: x.tolist(), ["_to_copy"]),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_a_host_read_is_recorded_by_name(name, mode):
    read, expected = READS[name]
    with simulated_accelerator() as sim, mode():
        x = torch.arange(3.0, device="sim")
        assert sim.host_reads == []
        read(x)
        assert sim.host_reads == expected


NO_READS = {
    "mask_filled": lambda x: x.masked_fill_(x > 0, 1.0),
    "where": lambda x: torch.where(x > 0, x, -x),
    "index": lambda x: x[torch.arange(2, device="sim")],
    "index_written": lambda x: x.__setitem__(torch.arange(2, device="sim"), x[1:].clone()),
    "any": lambda x: (x > 0).any(),
    "move_to_itself": lambda x: x.to("sim"),
    "change_of_dtype": lambda x: x.to(torch.float64),
    "copy_on_the_device": lambda x: x.clone().copy_(x),
    "repeats_of_known_size": lambda x: x.repeat_interleave(x.long(), output_size=3),
    "one_hot": lambda x: F.one_hot(x.long(), 3),
    "shape": lambda x: (x.shape, x.device, x.dtype, len(x)),
    "repr": repr,
    "cpu_work": lambda x: torch.ones(2).nonzero().tolist(),
}


@pytest.mark.parametrize("name", NO_READS)
def test_work_on_the_device_is_no_host_read(name):
    with simulated_accelerator() as sim:
        NO_READS[name](torch.arange(3.0, device="sim"))
        assert sim.host_reads == []
        assert sim.uploads == []


def test_uploads_and_tensors_made_on_the_cpu_are_recorded():
    with simulated_accelerator() as sim:
        torch.ones(2, 3).to("sim")
        torch.zeros(4, device="sim").copy_(torch.arange(4))
        torch.tensor([1, 2], device="sim")
        assert sim.uploads == [Call("_to_copy", (2, 3)), Call("copy_", (4,)), Call("copy_", (2,))]
        assert sim.cpu_factories == [Call("ones", (2, 3)), Call("arange", (4,))]
        torch.ones(2, device="sim").tolist()
        sim.reset()
        assert sim.host_reads == sim.uploads == sim.cpu_factories == []


@pytest.mark.parametrize(
    ("make", "op"),
    [
        (lambda x: torch.rand(2), "rand"),
        (lambda x: torch.tensor([1.0, 2.0]), "lift_fresh"),
        (lambda x: torch.zeros_like(x, device="cpu"), "zeros_like"),
        (lambda x: x.new_full((2,), 1.0, device="cpu"), "new_full"),
        (lambda x: torch.randn_like(torch.from_numpy(x.cpu().numpy())), "randn_like"),
    ],
)
def test_a_tensor_made_on_the_cpu_is_recorded(make, op):
    with simulated_accelerator() as sim:
        make(torch.ones(2, device="sim"))
        assert sim.cpu_factories[-1] == Call(op, (2,))


def test_views_share_their_base_and_copies_do_not():
    with simulated_accelerator():
        x = torch.zeros(4, device="sim")
        assert x.view(2, 2).data_ptr() == x.data_ptr() != x.clone().data_ptr()


def test_the_random_state_of_the_device_can_be_forked():
    with simulated_accelerator():
        with torch.random.fork_rng(devices=[0], device_type="sim"):
            first = torch.rand(3, device="sim").tolist()
        assert torch.rand(3, device="sim").tolist() == first


def test_torch_knows_the_device_while_the_simulation_is_active_and_not_after():
    with simulated_accelerator(devices=3):
        module = torch.get_device_module("sim")
        assert module.is_available()
        assert module.device_count() == torch.accelerator.device_count() == 3
        assert torch.accelerator.current_accelerator() == torch.device("sim")
        assert torch.accelerator.is_available()
        module.synchronize(torch.device("sim", 0))
    assert module.device_count() == 0
    assert not module.is_available()
    assert not torch.accelerator.is_available()


def test_devices_are_distinct_and_numbered():
    with simulated_accelerator(devices=2) as sim:
        first, second = torch.ones(2, device="sim"), torch.ones(2, device="sim:1")
        assert (first.device.index, second.device.index) == (0, 1)
        with pytest.raises(RuntimeError, match="sim:1 and sim:0"):
            first + second
        assert (first + second.to("sim:0")).device.index == 0
        assert sim.host_reads == sim.uploads == []
        with pytest.raises(RuntimeError, match="invalid device ordinal 2: 2 visible"):
            torch.ones(2, device="sim:2")


def test_a_device_without_float64_refuses_it():
    with simulated_accelerator(float64=False):
        x = torch.ones(2, device="sim")
        assert (x * 2.0).dtype == torch.float32
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, dtype=torch.float64).to("sim")


def test_a_tensor_is_useless_after_the_simulation():
    with simulated_accelerator():
        x = torch.ones(2, device="sim")
    with pytest.raises(RuntimeError, match=r"outside simulated_accelerator\(\)"):
        x + 1
    with pytest.raises(RuntimeError, match=r"outside simulated_accelerator\(\)"):
        torch.tensor([1], device="sim")
    assert x.shape == (2,)


def test_a_shape_that_outgrows_its_storage_fails_loudly():
    with simulated_accelerator(), pytest.raises(RuntimeError, match="out of bounds"):
        torch.ones(2, device="sim").resize_(9)


def test_simulations_do_not_nest_and_end_on_an_exception():
    with simulated_accelerator(), pytest.raises(RuntimeError, match="cannot be nested"):
        simulated_accelerator().__enter__()
    with pytest.raises(ZeroDivisionError), simulated_accelerator():
        _ = 1 / 0
    with simulated_accelerator() as sim:
        assert torch.ones(1, device="sim").tolist() == [1.0]
        assert sim.host_reads == ["_to_copy"]


def test_a_fresh_import_of_the_helper_finds_the_registered_device(monkeypatch):
    with simulated_accelerator():
        torch.ones(1, device="sim")
    monkeypatch.delitem(sys.modules, "tests.simulated_accelerator")
    fresh = importlib.import_module("tests.simulated_accelerator")
    assert fresh.simulated_accelerator is not simulated_accelerator
    with fresh.simulated_accelerator() as sim:
        x = torch.tensor([1.0, 2.0], device="sim").requires_grad_()
        (gradient,) = torch.autograd.grad(x.square().sum(), x)
        assert gradient.tolist() == [2.0, 4.0]
        assert sim.uploads == [Call("copy_", (2,))]


def test_as_a_plugin_the_device_works_for_the_whole_run(pytester, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    pytester.makepyfile("""
        import torch

        ONES = torch.ones(2, device="sim")

        def test_device():
            assert (ONES + 1).tolist() == [2.0, 2.0]
    """)
    pytester.runpytest_inprocess("-p", "tests.simulated_accelerator").assert_outcomes(passed=1)
    with simulated_accelerator() as sim:
        assert sim.host_reads == []
