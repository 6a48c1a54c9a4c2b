"""What the nodes of autograd's graph differentiate, by their names."""

from __future__ import annotations

import re

__all__ = ["is_elementwise", "operation"]

# what autograd writes behind: "0" in "MulBackward0", "0List" in "ForeachMulBackward0List"
_OVERLOAD = re.compile(r"\d*(List|Tensor|Scalar|ScalarList)?")

# operations that act on each element, by the names of autograd's nodes
# fmt: off
_ELEMENTWISE = {
    "Abs", "Acos", "Add", "Addcdiv", "Addcmul", "Asin", "Asinh", "Atan", "Atanh", "Ceil",
    "Clamp", "ClampMax", "ClampMin", "Clone", "Cos", "Cosh", "Div", "Elu", "Erf", "Erfc", "Exp",
    "Expm1", "Floor", "Fmod", "Gelu", "GeluBackward", "Hardtanh", "Hardswish", "LeakyRelu",
    "Lerp", "Log", "Log10", "Log1P", "Log2", "LogSigmoid", "LogSigmoidBackward", "MaskedFill",
    "Maximum", "Minimum", "Mish", "Mul", "MseLossBackward", "Neg", "Pow", "Prelu", "Reciprocal",
    "Relu", "Remainder", "Round", "Rsqrt", "Rsub", "Sgn", "Sigmoid", "SigmoidBackward", "Sign",
    "Silu", "SiluBackward", "Sin", "Sinh", "Softplus", "SoftplusBackward", "Sqrt", "Square",
    "Sub", "Tan", "Tanh", "TanhBackward", "ThresholdBackward", "ToCopy", "Where",
}
# fmt: on


def is_elementwise(name: str) -> bool:
    """Return whether an operation acts on each element by itself."""
    return name in _ELEMENTWISE


def operation(label: str) -> str:
    """Return the operation that a node of autograd's graph differentiates.

    Example:
        >>> from torchopt_viz._elementwise import operation
        >>> operation("MulBackward0"), operation("ForeachMulBackward0List")
        ('Mul', 'ForeachMul')
    """
    head, found, tail = label.rpartition("Backward")
    return head if found and _OVERLOAD.fullmatch(tail) else label
