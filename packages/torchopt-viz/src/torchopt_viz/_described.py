"""What a transformation is, in a few words."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import torchopt

__all__ = ["described"]

# what stands around the transformations that a chain or a rule is made of
_AROUND = {"ChainedGradientTransformation", "GradientTransformation", "RuleTransformation"}
# a function: "<function cosine at 0x7f>"
_ADDRESS = re.compile(r"<function (?:\w+\.<locals>\.)*<?(\w+)>? at 0x\w+>")
_CALL = re.compile(r"(\w+)\((.*)\)", flags=re.DOTALL)


def described(transformation: torchopt.GradientTransformation) -> str:
    """Return what a transformation is and the hyperparameters that are not its defaults.

    Example:
        >>> import torchopt
        >>> from torchopt_viz._described import described
        >>> described(torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.sgd(0.1, 0.9)))
        'ClipNorm(max_norm=1.0), sgd(lr=0.1, momentum=0.9)'
    """
    return ", ".join(map(_brief, _parts(repr(transformation)))) or "identity"


def _parts(text: str) -> Iterator[str]:
    """Return the transformations of a chain, each as it is written."""
    found = _CALL.fullmatch(text)
    if found is None or found[1] not in _AROUND or found[2].startswith("init="):
        yield text
        return
    for part in _arguments(found[2]):
        yield from _parts(part)


def _arguments(text: str) -> list[str]:
    """Return what stands between commas that are in no brackets."""
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _brief(text: str) -> str:
    """Return a call with its learning rate and the arguments that are not as by default."""
    found = _CALL.fullmatch(text)
    if found is None or found[1] in _AROUND:
        return "transformation"
    name, arguments = found[1].lstrip("_"), _arguments(found[2])
    factory = getattr(torchopt, name, None)
    if callable(factory):
        known = inspect.signature(factory).parameters
        plain = {f"{key}={known[key].default!r}" for key in known if key != "lr"}
        arguments = [argument for argument in arguments if argument not in plain]
    else:
        arguments = arguments[:1]
    brief = f"{name}({', '.join(arguments)})" if arguments else name
    return _ADDRESS.sub(r"\1", brief)
