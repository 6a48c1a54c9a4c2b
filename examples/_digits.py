"""Few-shot tasks from scikit-learn's handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits

__all__ = ["Classes", "Task", "load_classes"]


class Task(NamedTuple):
    """Images of a few classes, in random order of labels: some to adapt to, others to judge by."""

    # (ways * shots, 1, 8, 8) and labels (ways * shots,)
    support: torch.Tensor
    support_labels: torch.Tensor
    # (ways * queries, 1, 8, 8) and labels (ways * queries,)
    query: torch.Tensor
    query_labels: torch.Tensor
    # the name of the class behind each label
    names: list[str]


class Classes:
    """Classes of images, from which tasks are drawn."""

    def __init__(self, images: Sequence[torch.Tensor], names: Sequence[str]) -> None:
        """Take the images of each class, (number, 1, 8, 8), and the names of the classes."""
        self.images = images
        self.names = names

    def draw(self, ways: int, shots: int, queries: int, generator: torch.Generator) -> Task:
        """Return a task with images of ``ways`` random classes."""
        chosen = torch.randperm(len(self.images), generator=generator)[:ways]
        support, query = [], []
        for k in chosen.tolist():
            images = self.images[k]
            order = torch.randperm(len(images), generator=generator)[: shots + queries]
            support.append(images[order[:shots]])
            query.append(images[order[shots:]])
        labels = torch.arange(ways)
        return Task(
            torch.cat(support),
            labels.repeat_interleave(shots),
            torch.cat(query),
            labels.repeat_interleave(queries),
            [self.names[k] for k in chosen.tolist()],
        )


def load_classes(digits: Sequence[int], *, symmetries: bool) -> Classes:
    """Return the classes of some digits.

    Args:
        digits: The digits, 0 to 9.
        symmetries: Whether each of the eight rotations and reflections of a digit is a class of its
            own, which multiplies the classes to learn from (as Santoro et al. 2016 do).
    """
    bundle = load_digits()
    images = torch.tensor(bundle.images, dtype=torch.get_default_dtype()).unsqueeze(1) / 16
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(bundle.target)
    classes, names = [], []
    for digit in digits:
        upright = images[labels == digit]
        for mirrored in (False, True) if symmetries else (False,):
            for turns in range(4) if symmetries else (0,):
                turned = torch.rot90(upright.flip(-1) if mirrored else upright, turns, (-2, -1))
                classes.append(turned)
                names.append(f"{digit}")
    return Classes(classes, names)
