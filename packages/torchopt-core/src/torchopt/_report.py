"""What to paste into a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import optree
import torch

from torchopt._extensions import EXTENSIONS, accelerated_op_available, is_installed

__all__ = ["report"]

CORE = "torchopt-core"
# Another distribution of the package index, with the same import name.
CLASHING = "torchopt"


def report() -> str:
    """Return the versions of what `torchopt` runs on, its parts, and which kernels are live.

    Example:
        >>> from torchopt._report import report
        >>> report().splitlines()[0]
        'torchopt report'
    """
    parts = [CORE, *(extension.distribution for extension in EXTENSIONS.values())]
    rows = {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": _cuda(),
        "threads": str(torch.get_num_threads()),
        "optree": optree.__version__,
        "imported from": str(Path(__file__).parent),
        **{name: _version(name) or "not installed" for name in parts},
        **{f"kernels on {device}": _kernels(device) for device in ("cpu", "cuda")},
    }
    width = max(map(len, rows))
    lines = ["torchopt report", *(f"  {name:<{width}}  {value}" for name, value in rows.items())]
    clashing = _version(CLASHING)
    if clashing is not None:
        lines += [
            "",
            f"warning: the distribution `{CLASHING}` {clashing} is installed too. It has the same",
            f"import name as `{CORE}`, so that the files of both are mixed. Remove both, then",
            "install the one you want:",
            "",
            f"    pip uninstall -y {CLASHING} {CORE}",
            f"    pip install {CORE}",
        ]
    return "\n".join(lines)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cuda() -> str:
    if torch.version.cuda is None:
        return "not in this build of torch"
    if not torch.cuda.is_available():
        return f"built for {torch.version.cuda}, no device available"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"built for {torch.version.cuda}, on {', '.join(devices)}"


def _kernels(device: str) -> str:
    try:
        if accelerated_op_available(device):
            return "live"
    except Exception as error:  # a broken build is what the report is for
        return f"broken: {error!r}"
    return "not live" if is_installed("torchopt_accel") else "not installed"
