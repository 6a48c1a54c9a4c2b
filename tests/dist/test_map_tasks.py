"""A meta-step in one process: an ordinary function."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import torchopt
import torchopt.distributed as todist
from torchopt_dist import TaskError, TaskFailure, TaskGradients, map_tasks, process_group
from torchopt_dist._group import Ranks
from torchopt_dist._reduce_tree import Node, cover, push

X = torch.linspace(-1, 1, 8).unsqueeze(1)
RATES = [0.5, 1.0, 2.0]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1))


def loss(net: nn.Module, rate: float) -> Tensor:
    return F.mse_loss(net(X), torch.sin(rate * X))


def test_the_front_door_has_it() -> None:
    assert todist.map_tasks is map_tasks


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 4.0], torch.tensor([1.0, 2.0, 4.0])])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_is_the_loop_that_one_would_write(
    reduction: Any, weights: Any, deterministic: bool
) -> None:
    net = network()
    result = map_tasks(
        loss, RATES, net, reduction=reduction, weights=weights, deterministic=deterministic
    )
    factors = torch.ones(3) if weights is None else torch.as_tensor(weights)
    factors = factors / factors.sum() if reduction == "mean" else factors
    total = sum(f * loss(net, rate) for f, rate in zip(factors, RATES, strict=True))
    total.backward()
    torch.testing.assert_close(result.loss, total.detach())
    torch.testing.assert_close(result.losses, torch.stack([loss(net, r) for r in RATES]).detach())
    assert list(result.grads) == [name for name, _ in net.named_parameters()]
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(result.grads[name], parameter.grad)
    assert not any(leaf.requires_grad for leaf in torchopt.pytree.tree_leaves(result))


def test_one_graph_is_in_memory_at_a_time() -> None:
    alive = 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            nonlocal alive
            alive += 1
            assert alive == 1
            return x.clone()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            nonlocal alive
            alive -= 1
            return cotangent

    w = torch.ones(2, requires_grad=True)
    map_tasks(lambda w, _: Counted.apply(w).sum(), range(5), w)
    assert alive == 0


def test_only_what_requires_a_gradient_has_one() -> None:
    params = {
        "w": torch.ones(2, requires_grad=True),
        "unused": torch.ones(2, requires_grad=True),
        "rare": torch.ones(2, requires_grad=True),
        "constant": torch.ones(2),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "nothing": None,
    }

    def fn(p: dict[str, Any], index: int) -> Tensor:
        value = (p["w"] * p["constant"] * p["count"])[p["mask"]].sum()
        return value + p["rare"].sum() if index == 2 else value

    for deterministic in (False, True):
        grads = map_tasks(fn, range(4), params, deterministic=deterministic).grads
        assert {name for name, grad in grads.items() if grad is not None} == {"w", "rare"}
        torch.testing.assert_close(grads["rare"], torch.full((2,), 0.25))
        torch.testing.assert_close(grads["w"], torch.tensor([3.0, 0.0]))


def test_dtypes_keep_their_precision() -> None:
    params = {
        "double": torch.tensor(1.0, dtype=torch.float64, requires_grad=True),
        "single": torch.tensor(1.0, requires_grad=True),
        "half": torch.tensor(1.0, dtype=torch.float16, requires_grad=True),
        "complex": torch.tensor(1.0 + 1.0j, dtype=torch.complex64, requires_grad=True),
    }

    def fn(p: dict[str, Tensor], scale: float) -> Tensor:
        return p["double"] * scale + p["single"] + p["half"] + p["complex"].abs().square()

    result = map_tasks(fn, [1.0, 1.0 + 2e-15], params, reduction="sum")
    assert result.grads["double"].item() == 1.0 + (1.0 + 2e-15)
    assert result.loss.dtype == torch.float64
    assert {name: grad.dtype for name, grad in result.grads.items()} == {
        name: leaf.dtype for name, leaf in params.items()
    }
    torch.testing.assert_close(result.grads["complex"], torch.tensor(4.0 + 4.0j))
    # 2048 + 1 is not a number of float16: the sum is kept in float32 at least
    half = torch.tensor(0.0, dtype=torch.float16, requires_grad=True)
    many = map_tasks(lambda w, _: w * 1.0, range(4000), half, reduction="sum")
    assert many.grads.item() == 4000
    assert many.grads.dtype == torch.float16


@pytest.mark.parametrize("sparse", [False, True])
def test_sparse_gradients_become_dense(sparse: bool) -> None:
    table = nn.Embedding(5, 2, sparse=sparse)
    result = map_tasks(lambda net, i: net(torch.tensor([i])).sum(), range(3), table)
    assert result.grads["weight"].layout is torch.strided
    torch.testing.assert_close(result.grads["weight"].sum(1), torch.tensor([2, 2, 2, 0, 0]) / 3)


def test_module_state_is_put_back_after_each_task() -> None:
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    before = {name: x.clone() for name, x in net.state_dict().items()}
    leaves = list(net.parameters())

    def fn(net: nn.Module, rate: float) -> Tensor:
        assert all(x is y for x, y in zip(net.parameters(), leaves, strict=True))
        assert torch.equal(net[1].running_mean, before["1.running_mean"])
        torchopt.MetaSGD(net, lr=0.1).step(loss(net, rate))
        if rate == 2.0:
            raise ArithmeticError
        return loss(net, rate)

    map_tasks(fn, RATES[:2], net)
    with pytest.raises(TaskError):
        map_tasks(fn, RATES, net)
    assert all(x is y for x, y in zip(net.parameters(), leaves, strict=True))
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.Adam(p, lr=0.1), lambda p: torchopt.Adam(p, lr=0.1)]
)
@pytest.mark.parametrize("form", ["module", "sequence"])
def test_gradients_go_to_stateful_optimizers(make: Callable[..., Any], form: str) -> None:
    net = network()
    params = net if form == "module" else [*net.parameters()]
    outer = make(net.parameters())
    start = float(map_tasks(lambda _, rate: loss(net, rate), RATES, params).loss)
    for _ in range(50):
        outer.zero_grad()
        result = map_tasks(lambda _, rate: loss(net, rate), RATES, params)
        result.accumulate_grad(params)
        outer.step()
    assert float(result.loss) < 0.5 * start


def test_accumulate_grad_adds_as_backward_does() -> None:
    shared = torch.ones(2, requires_grad=True)
    params = [shared, shared, torch.ones(1, requires_grad=True)]
    result = map_tasks(lambda p, _: (3 * p[0] * p[1]).sum(), range(2), params)
    for expected in (6.0, 12.0):
        result.accumulate_grad(params)
        assert torch.equal(shared.grad, torch.full((2,), expected))
    assert params[2].grad is None
    with pytest.raises(ValueError, match="`params` must be what map_tasks was called with"):
        result.accumulate_grad(params[:2])


def test_gradients_go_to_functional_optimizers() -> None:
    net = network()
    params = dict(net.named_parameters())
    optim = torchopt.adam(lr=0.1)
    state = optim.init(params)
    found = []
    for _ in range(30):
        result = map_tasks(
            lambda p, rate: F.mse_loss(torch.func.functional_call(net, p, X), torch.sin(rate * X)),
            RATES,
            params,
        )
        updates, state = optim.update(result.grads, state)
        params = torchopt.apply_updates(params, updates)
        found.append(float(result.loss))
    assert found[-1] < 0.5 * found[0]


def test_gradients_are_found_under_no_grad_too() -> None:
    w = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert map_tasks(lambda w, i: (w * i).sum(), range(3), w).grads.sum() == 2.0


def test_only_items_of_tasks_are_taken() -> None:
    class Lazy:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> float:
            return [2.0, 4.0, 6.0][index]

    w = torch.ones(1, requires_grad=True)
    assert map_tasks(lambda w, x: w.sum() * x, Lazy(), w).loss == 4.0


def test_a_seed_makes_tasks_independent_of_what_ran_before() -> None:
    w = torch.ones(4, requires_grad=True)

    def fn(w: Tensor, index: int) -> Tensor:
        return (w * torch.rand(4)).sum()

    whole = map_tasks(fn, range(4), w, seed=1).losses
    assert len(set(whole.tolist())) == 4
    before = torch.random.get_rng_state()
    assert torch.equal(map_tasks(fn, range(4), w, seed=1).losses, whole)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(map_tasks(fn, range(2), w, seed=1).losses, whole[:2])
    assert not torch.equal(map_tasks(fn, range(4), w, seed=2).losses, whole)


def test_a_task_that_raises_says_where() -> None:
    def helper(index: int) -> float:
        return 1 / (index - 2)

    w = torch.ones(1, requires_grad=True)
    with pytest.raises(TaskError, match=r"task 2 raised on rank 0(.|\n)*in helper") as info:
        map_tasks(lambda w, i: w.sum() * helper(i), range(5), w)
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert (info.value.rank, info.value.task) == (0, 2)


def test_errors_survive_pickling() -> None:
    for error in (
        TaskError([TaskFailure(1, 5, "Traceback"), TaskFailure(2, 6, "other")]),
        todist.LostRankError([1, 2], "ranks 1, 2 are lost"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert str(copy) == str(error)
        assert vars(copy) == vars(error)


W = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "`tasks` must not be empty", lambda: map_tasks(loss, [], W)),
        (TypeError, "`tasks`.*list_iterator; list()", lambda: map_tasks(loss, iter([1]), W)),
        (TypeError, "`tasks`.*int.*range", lambda: map_tasks(loss, 3, W)),
        (TypeError, "`params`.*generator.*list", lambda: map_tasks(loss, [1], (x for x in [W]))),
        (ValueError, "requires_grad_", lambda: map_tasks(loss, [1], [torch.ones(2)])),
        (
            ValueError,
            "one device, got cpu, meta",
            lambda: map_tasks(loss, [1], [W, torch.ones(1, device="meta", requires_grad=True)]),
        ),
        (
            ValueError,
            "'mean' or 'sum', got 'max'",
            lambda: map_tasks(loss, [1], W, reduction="max"),
        ),
        (ValueError, "as many as tasks, 1, got 2", lambda: map_tasks(loss, [1], W, weights=[1, 2])),
        (ValueError, "finite and not negative", lambda: map_tasks(loss, [1], W, weights=[-1.0])),
        (ValueError, "not all be zero", lambda: map_tasks(loss, [1], W, weights=[0.0])),
        (ValueError, "`timeout`.*seconds, got 0", lambda: process_group(timeout=0).__enter__()),
    ],
)
def test_bad_arguments_say_what_to_do(
    error: type[Exception], match: str, call: Callable[[], Any]
) -> None:
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("match", "fn", "metrics"),
    [
        (r"real scalar tensor, got \(2,\)", lambda w, i: w * 2, ()),
        ("real scalar tensor, got float", lambda w, i: 1.0, ()),
        ("complex64", lambda w, i: (w * 1j).sum(), ()),
        ("name what comes with the loss", lambda w, i: (w.sum(), {}), ()),
        ("detached", lambda w, i: w.sum().detach(), ()),
        (r"or pass has_aux=True", lambda w, i: (w.sum(), 1), ()),
        ("pair of the loss and the metrics 'a'", lambda w, i: w.sum(), ("a",)),
        (r"the metrics \['a'\], got \['b'\]", lambda w, i: (w.sum(), {"b": 1}), ("a",)),
        ("metric 'a' must be a real scalar", lambda w, i: (w.sum(), {"a": "x"}), ("a",)),
    ],
)
def test_bad_losses_say_what_to_do(match: str, fn: Any, metrics: Any) -> None:
    with pytest.raises(TaskError, match=match):
        map_tasks(fn, range(1), W, metrics=metrics)


def test_metrics_are_one_number_for_each_task() -> None:
    def fn(w: Tensor, index: int) -> tuple[Tensor, dict[str, Any]]:
        return w.sum(), {"index": index, "even": torch.tensor(index % 2 == 0)}

    result = map_tasks(fn, range(3), W, metrics=["index", "even"])
    assert result.metrics["index"].tolist() == [0, 1, 2]
    assert result.metrics["even"].tolist() == [1, 0, 1]


def test_without_torchrun_a_process_group_is_not_needed_nor_made() -> None:
    with process_group():
        assert not torch.distributed.is_initialized()
        assert isinstance(map_tasks(lambda w, i: w.sum(), range(2), W), TaskGradients)


def test_a_forgotten_process_group_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"with process_group\(\)"):
        map_tasks(lambda w, i: w.sum(), range(2), W)


def test_tasks_are_evaluated_without_gradients() -> None:
    net = network().requires_grad_(False)
    result = map_tasks(loss, RATES, net, differentiate=False)
    torch.testing.assert_close(result.losses, torch.stack([loss(net, rate) for rate in RATES]))
    assert result.grads is None
    with pytest.raises(ValueError, match="differentiate=False"):
        result.accumulate_grad(net)
    modes = []

    def fn(net: nn.Module, rate: float) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return loss(net, rate)

    map_tasks(fn, RATES[:1], net, differentiate=False)
    with torch.no_grad():
        map_tasks(fn, RATES[:1], net, differentiate=False)
    assert modes == [True, False]
    counts = nn.ParameterDict()  # nothing in it
    assert map_tasks(lambda _, x: torch.tensor(x), RATES, counts, differentiate=False).loss > 1


def test_a_tree_comes_with_the_loss() -> None:
    def fn(net: nn.Module, rate: float) -> Any:
        return loss(net, rate), {"name": f"{rate}", "y": net(X)[:2], "none": None}

    result = map_tasks(fn, RATES, network(), has_aux=True)
    assert [tree["name"] for tree in result.aux] == ["0.5", "1.0", "2.0"]
    assert all(tree["y"].shape == (2, 1) and not tree["y"].requires_grad for tree in result.aux)
    assert map_tasks(loss, RATES, network()).aux == []


def test_progress_must_not_leave_tasks_out() -> None:
    with pytest.raises(TaskError, match="`progress` must yield the indices"):
        map_tasks(loss, RATES, network(), progress=lambda share: [*share][:2])


def test_no_derivative_is_lost_in_a_transformation() -> None:
    def mean(w: Tensor) -> Tensor:
        return map_tasks(lambda w, i: (w * i).sum(), range(3), w).loss

    for transform in (torch.func.grad, torch.func.vmap):
        with pytest.raises(ValueError, match="followed by a transformation"):
            transform(mean)(torch.ones(2))


@given(st.integers(1, 70), st.integers(1, 12))
def test_the_tree_does_not_depend_on_the_ranks(count: int, size: int) -> None:
    """Shares are a partition; their subtrees add up to the tree of one rank."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    shares = [Ranks(rank, size, (), None).share(count) for rank in range(size)]
    assert [index for share in shares for index in share] == [*range(count)]
    assert max(map(len, shares)) == math.ceil(count / size)

    def total(shares: list[range]) -> Tensor:
        above: list[Node] = []
        for share in shares:
            nodes: list[Node] = []
            for index in share:
                push(nodes, Node(0, index, values[index].clone()), count)
                assert len(nodes) <= 2 * count.bit_length()
            assert [node[:2] for node in nodes] == [node[:2] for node in cover(share, count)]
            for node in nodes:
                push(above, node, count)
        (root,) = above
        return root.total

    assert torch.equal(total(shares), total([range(count)]))
    torch.testing.assert_close(total(shares), values.sum())


@pytest.mark.parametrize("size", [n for n in range(3, 40) if n & (n - 1)])
def test_deterministic_sums_exchange_less_than_twice_what_a_gather_does(size: int) -> None:
    """In gradients: a gather of one from each rank receives as many as there are ranks."""
    for count in range(1, 130):
        shares = [Ranks(rank, size, (), None).share(count) for rank in range(size)]
        subtrees = [len(cover(share, count)) for share in shares]
        received = sum(subtrees) / size + 1  # a slice of each subtree, and all slices of the sum
        assert max(received, *subtrees) <= 2 * size
