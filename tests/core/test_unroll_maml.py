"""Programs written for learn2learn run with their import line changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchopt.diff.explicit import MAML

pytestmark = pytest.mark.usefixtures("float64")

# what `program` returns with `MAML` of learn2learn 0.2.0, second order and first
PRINTED = {
    False: [
        0.4605791870747852,
        0.440325389323852,
        0.42110889946221264,
        0.4029036709902021,
        0.38560207500708776,
    ],
    True: [
        0.4605791870747852,
        0.44545814215764895,
        0.430738575583824,
        0.41643042316734846,
        0.4025480228757553,
    ],
}


def program(first_order: bool) -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    maml = MAML(model, lr=0.1, first_order=first_order)
    opt = torch.optim.Adam(maml.parameters(), lr=0.01)
    loss_fn = torch.nn.MSELoss()
    x = torch.linspace(-2, 2, 10).unsqueeze(1)
    found = []
    for _iteration in range(5):
        opt.zero_grad()
        meta_loss: Any = 0.0
        for task in range(3):
            y = (x + task).sin()
            learner = maml.clone()
            for _step in range(3):
                learner.adapt(loss_fn(learner(x[::2]), y[::2]))
            meta_loss = meta_loss + loss_fn(learner(x[1::2]), y[1::2])
        meta_loss.backward()
        opt.step()
        found.append(meta_loss.item())
    return found


@pytest.mark.parametrize("first_order", [False, True])
def test_a_program_of_learn2learn_prints_what_it_printed(first_order: bool) -> None:
    assert program(first_order) == pytest.approx(PRINTED[first_order], rel=1e-12)


def test_what_is_not_adapted_must_be_allowed() -> None:
    model = torch.nn.Linear(2, 1)
    learner = MAML(model, lr=torch.tensor(0.1, requires_grad=True)).clone()
    before = learner.bias
    with pytest.raises(ValueError, match="allow_unused=True"):
        learner.adapt(learner.weight.square().sum())
    assert learner.bias is before
    learner.adapt(learner.weight.square().sum(), allow_unused=True)
    assert learner.bias is before
    model.bias.requires_grad_(False)
    learner = MAML(model, lr=0.1).clone()
    with pytest.raises(ValueError, match="allow_nograd=True"):
        learner.adapt(learner.weight.square().sum())
    learner.adapt(learner.weight.square().sum(), allow_nograd=True)
    with pytest.raises(AttributeError, match="missing"):
        _ = learner.missing
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got type"):
        MAML(torch.nn.Linear, lr=0.1)  # type: ignore[arg-type]
