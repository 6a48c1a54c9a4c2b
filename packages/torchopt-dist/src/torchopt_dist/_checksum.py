"""Checksums of tensors and of plain values, the same on every rank that has the same bits."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["content_digest", "digest", "tensor_checksum"]

# words of eight bytes in a row of weights, and in what is hashed at a time
_ROW = 1 << 15
_BLOCK = 1 << 20
# odd, and with bits that look random: the golden ratio's (Knuth, TAOCP 3, section 6.4)
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def tensor_checksum(tensors: Iterable[Tensor]) -> Tensor:
    r"""Return 64 bits that depend on every bit of the tensors and on its place, as a scalar.

    A multilinear hash modulo :math:`2^{64}` (Carter and Wegman 1979; Lemire and Kaser 2014) over
    words :math:`x_i` of eight bytes, with odd weights:

    .. math:: \sum_i w_i (x_i \oplus (x_i \gg 29)) \bmod 2^{64}

    The shift brings the upper bits, signs among them, to where a product keeps them apart. Shapes
    and dtypes are not part of it.

    Args:
        tensors: Of any strided dtype, on one device.
    """
    parts: list[Tensor] = []
    small: list[Tensor] = []
    device = None
    for tensor in tensors:
        data = _bytes(tensor)
        device = data.device
        if data.numel() >= 8 * _ROW:
            parts.append(_hashed(_words(data)))
        else:
            small.append(data)
    if small:
        parts.append(_hashed(_words(torch.cat(small) if len(small) > 1 else small[0])))
    if not parts:
        return torch.zeros((), dtype=torch.int64, device=device or "cpu")
    return _hashed(torch.stack(parts))


def _bytes(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor.contiguous().view(-1).view(torch.uint8)


def _words(data: Tensor) -> Tensor:
    lacking = -data.numel() % 8
    if lacking or data.storage_offset() % 8:
        data = torch.cat([data, data.new_zeros(lacking)])
    return data.view(torch.int64)


def _hashed(words: Tensor) -> Tensor:
    while words.numel() > _ROW:
        whole = words.numel() // _ROW * _ROW
        rows = [block.view(-1, _ROW) for block in torch.split(words[:whole], _BLOCK)]
        tail = [_row_sums(words[whole:].unsqueeze(0))] if whole < words.numel() else []
        words = torch.cat([*map(_row_sums, rows), *tail])
    return _row_sums(words.unsqueeze(0)).view(())


def _row_sums(rows: Tensor) -> Tensor:
    weights = _weights(rows.device)[: rows.shape[1]]
    return (rows >> 29).bitwise_xor_(rows).mul_(weights).sum(1)


@functools.lru_cache(maxsize=8)
def _weights(device: torch.device) -> Tensor:
    index = torch.arange(1, _ROW + 1, dtype=torch.int64, device=device) * _GOLDEN
    index = (index ^ (index >> 31)) * _GOLDEN
    return (index ^ (index >> 27)) | 1


def digest(*values: object) -> int:
    """Return 63 bits of the printed form of plain values."""
    found = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(found, "little") >> 1


def content_digest(value: Any) -> int:
    """Return 63 bits of what is known of a value without asking it for anything.

    Known are tensors, arrays, numbers, strings, ranges and what contains them: sequences, mappings
    and objects with fields. Of anything else, such as a data set that loads its items when asked,
    only the class counts.
    """
    seen = hashlib.blake2b(digest_size=8)
    tensors: list[Tensor] = []
    _walk(value, seen.update, tensors, set())
    for device in sorted({str(tensor.device) for tensor in tensors}):
        group = [tensor for tensor in tensors if str(tensor.device) == device]
        seen.update(str(int(tensor_checksum(group))).encode())
    return int.from_bytes(seen.digest(), "little") >> 1


def _walk(value: Any, update: Any, tensors: list[Tensor], inside: set[int]) -> None:
    kind = type(value)
    if isinstance(value, Tensor):
        update(f"tensor {tuple(value.shape)} {value.dtype};".encode())
        if value.device.type != "meta" and kind in (Tensor, torch.nn.Parameter):
            tensors.append(value)
        return
    update(f"{kind.__module__}.{kind.__qualname__};".encode())
    if isinstance(value, enum.Enum):
        update(value.name.encode())
    elif isinstance(value, (bool, int, float, complex, str, bytes, type(None), range)):
        update(repr(value).encode() + b";")
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        update(f"{array.shape} {array.dtype};".encode())
        if not array.dtype.hasobject:
            update(array.tobytes())
    elif id(value) not in inside:  # a value that contains itself ends here
        children = _children(value)
        update(f"{len(children)};".encode())
        for child in children:
            _walk(child, update, tensors, inside | {id(value)})


def _children(value: Any) -> Sequence[Any]:
    if type(value) in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return value  # type: ignore[no-any-return]
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return ()
