"""What `import torchopt` costs on top of `import torch`, in fresh processes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import NamedTuple

from compare import Spread, environment

__all__ = ["HEAVY", "Startup", "measure"]

#: Modules that must not come with `import torchopt`.
HEAVY = (
    "torch.distributed.rpc",
    "torch.distributed.autograd",
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "graphviz",
    "matplotlib",
    "functorch",
    "pandas",
    "scipy",
    "sympy",
)

_CHILD = """
import json, sys, time

start = time.process_time()
import torch
torch_time = time.process_time() - start
before = set(sys.modules)
start = time.process_time()
import torchopt
torchopt_time = time.process_time() - start
new = sorted(set(sys.modules) - before)
print(json.dumps({"torch": torch_time, "torchopt": torchopt_time, "new": new}))
"""


class Startup(NamedTuple):
    """Measurements of an import."""

    #: Milliseconds of `import torchopt` after `import torch`.
    milliseconds: Spread
    #: The same, over the time of `import torch` in that process.
    share: Spread
    #: A peer's time over ours, pair by pair; None: there is no peer.
    peer: Spread | None
    #: Heavy modules that `import torchopt` loads and `import torch` does not.
    heavy: list[str]


class _Import(NamedTuple):
    torch: float
    torchopt: float
    new: list[str]


def _run(python: str, ours: str) -> _Import:
    output = subprocess.run(
        [python, "-W", "ignore", "-c", _CHILD],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(python, ours),
    ).stdout
    return _Import(**json.loads(output.splitlines()[-1]))


def measure(
    ours: str, peer: str | None, repeats: int, tick: Callable[[], object] = lambda: None
) -> Startup:
    """Import in fresh processes, ours and the peer's in turn.

    Args:
        ours: The Python that has torchopt.
        peer: The Python that has the peer, if any.
        repeats: How often. One more import of each comes first and fills the caches.
        tick: Called after each import, for a progress bar.
    """
    pythons = [ours] if peer is None else [ours, peer]
    rounds = []
    for _ in range(1 + repeats):
        results = []
        for python in pythons:
            results.append(_run(python, ours))
            tick()
        rounds.append(results)
    del rounds[0]
    mine = [results[0] for results in rounds]
    return Startup(
        milliseconds=Spread.of([1e3 * x.torchopt for x in mine]),
        share=Spread.of([x.torchopt / x.torch for x in mine]),
        peer=None if peer is None else Spread.of([y.torchopt / x.torchopt for x, y in rounds]),
        heavy=[name for name in mine[0].new if name.startswith(HEAVY)],
    )
