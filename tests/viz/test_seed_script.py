"""The example repeats the published walks over the flower."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WALKS = [
    *("AdamW, lr 0.01, 200", "AdamW, lr 0.1, 200", "AdamW, lr 0.7, 200", "AdamW, lr 0.1, 300"),
    *("AdamW, lr 0.1, 700", "AdamW, lr 0.1, 900", "AdamW, lr 0.1, 1300"),
    *("AdaHessian, lr 0.3, 35", "AdaHessian, lr 0.3, 200"),
    *("L-BFGS, strong Wolfe, 3", "L-BFGS, strong Wolfe, 10"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("walks")
    script = EXAMPLES / "optimizer_walks.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), "--fast", "--output", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


@pytest.mark.slow
@pytest.mark.parametrize("walk", WALKS)
def test_what_is_seen_is_held_against_what_was_published(run: tuple[str, Path], walk: str) -> None:
    pattern = rf"^{re.escape(walk)} steps\n  published: .+\n  seen:      .+\n  (.+)$"
    (verdict,) = re.findall(pattern, run[0], re.M)
    assert re.fullmatch(r"agrees(: \d+ of 20 seeds)?", verdict)
    assert ("seeds" in verdict) == walk.startswith("AdaHessian")


@pytest.mark.slow
def test_it_saves_a_picture_of_each_walk_and_of_all(run: tuple[str, Path]) -> None:
    pictures = sorted(run[1].glob("*.png"))
    assert len(pictures) == len(WALKS) + 1
    for picture in pictures:
        with Image.open(picture) as image:
            assert len(image.convert("RGB").getcolors(2**24)) > 100


@pytest.fixture
def adahessian(monkeypatch: pytest.MonkeyPatch) -> type[torch.optim.Optimizer]:
    monkeypatch.syspath_prepend(EXAMPLES)
    from _adahessian import AdaHessian

    return AdaHessian  # type: ignore[no-any-return]


def test_adahessian_with_the_papers_power_stays_in_its_petal(
    adahessian: type[torch.optim.Optimizer],
) -> None:
    import optimizer_walks

    (experiment,) = [e for e in optimizer_walks.EXPERIMENTS if e.name == "adahessian_0.3_200"]
    paper = experiment._replace(hyperparameters={"lr": 0.3})
    assert optimizer_walks.agreeing_seeds(paper) == []


def test_adahessian_is_the_algorithm_of_the_paper(
    adahessian: type[torch.optim.Optimizer],
) -> None:
    # Where the Hessian is diagonal, the estimate is exact whatever the signs are.
    curvature = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    w = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    expected, m, v = w.detach().clone(), torch.zeros(3).double(), torch.zeros(3).double()
    optimizer = adahessian([w], lr=0.3, betas=(0.8, 0.99), weight_decay=0.01, hessian_power=0.5)  # type: ignore[call-arg]
    for t in range(1, 11):
        optimizer.zero_grad()
        loss = (curvature * w.square()).sum() / 2 + w.sum()
        (w.grad,) = torch.autograd.grad(loss, w, create_graph=True)
        optimizer.step()
        m = 0.8 * m + 0.2 * (curvature * expected + 1)
        v = 0.99 * v + 0.01 * curvature**2
        root = (v / (1 - 0.99**t)).sqrt() ** 0.5 + 1e-4
        expected = expected - 0.3 * (m / (1 - 0.8**t) / root + 0.01 * expected)
        torch.testing.assert_close(w.detach(), expected)
    w.grad = None


def test_adahessian_estimates_the_diagonal_without_bias(
    adahessian: type[torch.optim.Optimizer],
) -> None:
    hessian = torch.tensor([[2.0, 0.7], [0.7, -1.0]])
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    optimizer = adahessian([w], generator=torch.Generator().manual_seed(0))  # type: ignore[call-arg]
    (w.grad,) = torch.autograd.grad(w @ hessian @ w / 2, w, create_graph=True)
    draws = torch.stack([optimizer.diagonals([w])[0] for _ in range(2000)])  # type: ignore[attr-defined]
    assert set(draws[:, 0].mul(10).round().int().tolist()) == {13, 27}
    # six standard errors of 0.7 / sqrt(2000)
    torch.testing.assert_close(draws.mean(dim=0), hessian.diag(), atol=0.1, rtol=0)
    w.grad = None
