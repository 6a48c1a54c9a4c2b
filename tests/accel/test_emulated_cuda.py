"""The CUDA driver, compiled for the processor: what it computes, not how fast or on what device."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11
import pytest
import torch

from torchopt_accel import _native

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "packages" / "torchopt-accel" / "cpp"

# states of each rule
STATES = {
    "sgd": 0,
    "momentum": 1,
    "rmsprop": 1,
    "rmsprop_momentum": 2,
    "centered_rmsprop": 2,
    "centered_rmsprop_momentum": 3,
    "adam": 2,
    "adagrad": 1,
    "adadelta": 2,
    "adamax": 2,
}
OPERATIONS = {
    "forward": (_native.FORWARD, lambda k: (2 + k, 1 + k)),
    "backward": (_native.BACKWARD, lambda k: (3 + 2 * k, 2 + k)),
    "forward tangent": (_native.FORWARD_TANGENT, lambda k: (2 * (2 + k), 1 + k)),
    "backward tangent": (_native.BACKWARD_TANGENT, lambda k: (2 * (3 + 2 * k), 2 + k)),
}
# around the sizes of a thread block's work; more leaves than one launch takes
SIZES = [0, 1, 5, 255, 256, 1023, 1024, 1025, 4097, 17] * 9
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Compile the driver as C++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("emulated")
    target = folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    files = [SOURCES / name for name in ("bindings.cpp", "tensors.cpp", "cuda/driver.cu")]
    includes = [HERE / "emulated", pybind11.get_include(), sysconfig.get_path("include")]
    defines = ["TORCHOPT_CUDA", "TORCHOPT_EMULATED", "TORCHOPT_MODULE=_emulated"]
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-w"]
    command += [f"-I{path}" for path in includes] + [f"-D{name}" for name in defines]
    command += ["-x", "c++", *map(str, files), "-o", str(target)]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("_emulated", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.lend_exchange(None, (torch.Tensor,))
    return module


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("rule", STATES)
def test_computes_what_the_processor_computes(
    emulated: ModuleType, rule: str, operation: str
) -> None:
    code, streams = OPERATIONS[operation]
    count, results = streams(STATES[rule])
    dtypes = [DTYPES[(7 * i) % 4] for i in range(len(SIZES))]
    leaves = list(zip(SIZES, dtypes, strict=True))
    inputs: list[Any] = [[torch.rand(n).add(0.1).to(d) for n, d in leaves] for _ in range(count)]
    if code != _native.FORWARD:  # cotangents and tangents may be missing
        inputs[-1] = [None if i % 5 == 2 else x for i, x in enumerate(inputs[-1])]
    outputs: list[Any] = [[torch.full((n,), 7.0).to(d) for n, d in leaves] for _ in range(results)]
    outputs[-1] = [None if i % 4 == 1 else x for i, x in enumerate(outputs[-1])]
    expected = [[None if x is None else x.clone() for x in stream] for stream in outputs]
    # more rows than one launch takes
    rows = [(1.0, 0.1 * k, 1.0, -0.01 * k, 1.0, 0.9, 0.99, 0.01, 1.0, 0.1) for k in range(7)]
    row_of = [i % 7 for i in range(len(SIZES))]

    emulated.run(code, emulated.RULES[rule], rows, row_of, inputs, outputs, 1)
    native = _native.load("cpu")
    native.run(code, native.RULES[rule], rows, row_of, inputs, expected, 1)
    for mine, theirs in zip(outputs, expected, strict=True):
        for x, y in zip(mine, theirs, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(x, y, rtol=0.0, atol=0.0)
