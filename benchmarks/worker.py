"""Runs cases on request: one JSON object per line on stdin, one answer per line on stdout.

Requests: ``{"op": "versions"}``; ``{"op": "build", "task": ..., "library": ..., "optimizer": ...,
"tensors": ...}``, which answers with a fingerprint of the results; ``{"op": "time", "key": ...,
"number": ...}``, which answers with seconds; ``{"op": "saved", ...}``, which answers with saved
tensors; ``{"op": "drop"}``.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import sys
import time
import traceback
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

import cases

PACKAGES = ("torch", "torchopt-core", "torchopt-accel", "torchopt", "higher", "optree")


def versions() -> dict[str, str]:
    """Return the versions of what is installed here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(case: cases.Case) -> list[float]:
    """Return numbers by which to tell whether two libraries compute the same.

    Medians: the derivative of Adam's first update is large where the gradient is near zero, and
    there libraries differ by how they keep the root from zero.
    """
    return [float(x.detach().abs().median()) for x in case()]


def seconds(case: cases.Case, number: int) -> float:
    """Return the processor time of ``number`` runs: other programs' turns do not count."""
    start = time.process_time()
    for _ in range(number):
        case()
    return time.process_time() - start


def main() -> None:
    """Answer requests until stdin ends."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # nothing that a library prints is an answer
    built: dict[str, cases.Case] = {}
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        operation = request.pop("op")
        result: Any = None
        try:
            if operation == "versions":
                result = versions()
            elif operation == "build":
                built[json.dumps(request)] = case = cases.build(**request)
                result = fingerprint(case)
                # the collector stays on, but does not walk all of torch during a timing
                gc.collect()
                gc.freeze()
            elif operation == "time":
                result = seconds(built[request["key"]], request["number"])
            elif operation == "saved":
                result = cases.saved_per_step(**request)
            elif operation == "drop":
                built.clear()
                gc.unfreeze()
            else:
                raise ValueError(f"unknown operation {operation!r}")
            answer = {"result": result}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
