"""What a task does to `params` is gone before the next one, whatever did it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
from torchopt_dist import TaskError, map_tasks

X = torch.linspace(-1, 1, 8, dtype=torch.float64).unsqueeze(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()
    net[3].bias.grad = torch.ones(1, dtype=torch.float64)
    return net


def error(net: nn.Module, rate: float) -> Tensor:
    return F.mse_loss(net(X), torch.sin(rate * X))


def sgd(net: nn.Module) -> None:
    """The inner loop of first-order MAML and of Reptile."""
    inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        inner.zero_grad()
        error(net, 2.0).backward()
        inner.step()


def adam(net: nn.Module) -> None:
    inner = torchopt.Adam(net.parameters(), lr=0.1)
    error(net, 2.0).backward()
    inner.step()


def accumulate(net: nn.Module) -> None:
    error(net, 2.0).backward()


def by_data(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.data.mul_(1.5)  # which no version counter sees


def other_memory(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.data = parameter.data * 1.5


def by_numpy(net: nn.Module) -> None:
    net[0].weight.detach().numpy()[:] = 3.0


def other_parameters(net: nn.Module) -> None:
    net[0].weight = nn.Parameter(torch.zeros(5, 1, dtype=torch.float64))
    net[3].bias.grad = None


def freeze(net: nn.Module) -> None:
    net[0].requires_grad_(False)
    net[1].eval()
    net[1].running_mean.add_(1.0)


def meta(net: nn.Module) -> None:
    torchopt.MetaSGD(net, lr=0.1).step(error(net, 2.0))


CHANGES: list[Callable[[nn.Module], None]] = [
    sgd,
    adam,
    accumulate,
    by_data,
    other_memory,
    by_numpy,
    other_parameters,
    freeze,
    meta,
]


def state(net: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "tensors": dict(net.state_dict()),
            "grads": [p.grad for p in net.parameters()],
            "flags": [p.requires_grad for p in net.parameters()],
            "modes": [m.training for m in net.modules()],
        }
    )


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("form", ["module", "tensors"])
def test_a_task_starts_from_what_the_first_one_did(
    change: Callable[[nn.Module], None], raises: bool, form: str
) -> None:
    net = network()
    before, tensors = state(net), [*net.parameters(), *net.buffers()]
    seen = []

    def fn(_: Any, index: int) -> Tensor:
        seen.append(state(net))
        if form == "module" or change not in (other_parameters, freeze, meta):
            change(net)
        if raises and index == 1:
            raise ArithmeticError
        net.requires_grad_()
        return sum((x.square().sum() for x in net.parameters()), start=torch.zeros(()))

    params: Any = net if form == "module" else tensors
    if raises:
        with pytest.raises(TaskError, match="ArithmeticError"):
            map_tasks(fn, range(2), params)
    else:
        losses = map_tasks(fn, range(2), params).losses
        assert losses[0] == losses[1]
    for found in (*seen, state(net)):
        assert found["flags"] == before["flags"]
        assert found["modes"] == before["modes"]
        for x, y in zip(found["grads"], before["grads"], strict=True):
            assert (x is None) == (y is None)
            assert x is None or torch.equal(x, y)
        for name, x in found["tensors"].items():
            assert torch.equal(x, before["tensors"][name]), name
    now = [*net.parameters(), *net.buffers()]
    assert all(x is y for x, y in zip(now, tensors, strict=True))


def test_first_order_maml_has_the_gradient_at_the_adapted_parameters() -> None:
    net = network()
    found = map_tasks(lambda net, rate: [sgd(net), error(net, rate)][1], [0.5, 1.0], net)
    for name in found.grads:
        expected = torch.zeros_like(found.grads[name])
        for rate in (0.5, 1.0):
            adapted = copy.deepcopy(net)
            sgd(adapted)
            gradients = torch.autograd.grad(error(adapted, rate), [*adapted.parameters()])
            expected += dict(zip(found.grads, gradients, strict=True))[name] / 2
        torch.testing.assert_close(found.grads[name], expected)


def test_gradients_in_place_of_none_are_not_those_of_the_result() -> None:
    w = torch.ones(2, requires_grad=True)
    result = map_tasks(lambda w, i: (3 * w).sum(), range(2), w)
    result.accumulate_grad(w)
    torch.nn.utils.clip_grad_norm_([w], 1e-3)
    assert result.grads.tolist() == [3.0, 3.0]


def test_a_graph_from_before_is_still_whole_after() -> None:
    net = network()
    net[1].eval()
    before = error(net, 1.0)
    map_tasks(error, [0.5, 1.0], net)
    before.backward()  # would be refused if parameters had been written to


def test_a_tree_of_inference_tensors_is_evaluated() -> None:
    with torch.inference_mode():
        w = torch.ones(2)
        result = map_tasks(lambda w, i: w.sum() * i, range(3), w, differentiate=False)
    assert result.losses.tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor(float("nan")),
        torch.zeros(2),
        torch.ones(3, dtype=torch.complex128),
        torch.ones((), dtype=torch.complex64),
        torch.ones(2, dtype=torch.float16),
        torch.ones(2, 3, dtype=torch.bfloat16).T,
        torch.tensor(True),
        torch.empty(0, 2),
    ],
    ids=str,
)
def test_every_dtype_is_put_back_to_the_bit(value: Tensor) -> None:
    w = torch.ones((), requires_grad=True)
    seen = []

    def fn(params: Any, index: int) -> Tensor:
        seen.append(params["x"].clone())
        params["x"].data.copy_(~value if value.dtype is torch.bool else -value)
        return params["w"] * index

    version = value._version
    map_tasks(lambda p, index: p["w"] * index, range(2), {"x": value, "w": w})
    assert value._version == version
    map_tasks(fn, range(2), {"x": value, "w": w})
    for x in (*seen, value):
        first, now = (t.contiguous().view(-1).view(torch.uint8) for t in (seen[0], x))
        assert torch.equal(first, now)
