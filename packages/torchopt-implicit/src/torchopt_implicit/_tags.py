"""What is known of the structure of an operator."""

from __future__ import annotations

import enum

__all__ = ["Tag"]


class Tag(enum.Flag):
    r"""What is known of an operator's structure, of its matrix on vectors. Combine them by ``|``.

    Solvers believe a tag and do not check it.

    Example:
        >>> from torchopt_implicit.linalg import Tag
        >>> Tag.SYMMETRIC in Tag.POSITIVE_DEFINITE, Tag.TRIDIAGONAL in Tag.DIAGONAL
        (True, True)
    """

    NONE = 0
    #: :math:`A = A^\top`
    SYMMETRIC = 1
    #: symmetric, and :math:`x^\top A x > 0` for all :math:`x \neq 0`
    POSITIVE_DEFINITE = 3
    #: zero above the diagonal
    LOWER_TRIANGULAR = 4
    #: zero below the diagonal
    UPPER_TRIANGULAR = 8
    #: zero but for the diagonal and its two neighbours
    TRIDIAGONAL = 16
    #: zero but for the diagonal
    DIAGONAL = 29

    @classmethod
    def of(cls, tags: Tag, *, symmetric: bool = False, positive_definite: bool = False) -> Tag:
        """Return the tags together with those that are said in words, and what follows of them."""
        if symmetric:
            tags |= cls.SYMMETRIC
        if positive_definite:
            tags |= cls.POSITIVE_DEFINITE
        triangular = cls.LOWER_TRIANGULAR | cls.UPPER_TRIANGULAR
        if triangular in tags or (cls.SYMMETRIC in tags and tags & triangular):
            tags |= cls.DIAGONAL
        return tags

    @property
    def transposed(self) -> Tag:
        """Those of the transpose."""
        triangular = Tag.LOWER_TRIANGULAR | Tag.UPPER_TRIANGULAR
        if self & triangular in (Tag.NONE, triangular):
            return self
        return self ^ triangular

    def composed(self, other: Tag) -> Tag:
        """Return those of the product with an operator of other tags."""
        both = self & other
        if Tag.DIAGONAL in both:
            return both
        tags = both & (Tag.LOWER_TRIANGULAR | Tag.UPPER_TRIANGULAR)
        if Tag.DIAGONAL in self or Tag.DIAGONAL in other:
            tags |= both & Tag.TRIDIAGONAL
        return tags
