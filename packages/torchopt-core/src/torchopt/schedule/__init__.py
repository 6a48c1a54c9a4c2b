"""Schedules: hyperparameters as functions of the number of steps made.

Names and semantics are those of `optax`. A schedule accepts a Python number and returns one (or a
tensor, if it was made from tensors), or a tensor of steps, of any shape and of an integer dtype,
and returns a tensor of that shape. The latter neither synchronizes nor branches on data, so it runs
under `torch.compile` and the transforms of `torch.func`.

Wherever a schedule takes a value, a 0-dim tensor is accepted too and receives gradients; the result
then has its dtype. With plain numbers, a tensor of steps gives float64.

Schedules compare by value, pickle, and print their arguments.
"""

from torchopt.schedule._constant import constant_schedule
from torchopt.schedule._cosine import cosine_decay_schedule, warmup_cosine_decay_schedule
from torchopt.schedule._exponential import exponential_decay
from torchopt.schedule._join import join_schedules
from torchopt.schedule._piecewise import piecewise_constant_schedule
from torchopt.schedule._polynomial import linear_schedule, polynomial_schedule

__all__ = [
    "constant_schedule",
    "cosine_decay_schedule",
    "exponential_decay",
    "join_schedules",
    "linear_schedule",
    "piecewise_constant_schedule",
    "polynomial_schedule",
    "warmup_cosine_decay_schedule",
]
