"""Task parallelism for differentiable optimization, on torch's RPC and collectives.

:func:`map_tasks` spreads the tasks of a meta-batch over the ranks of a :func:`process_group`;
:func:`save_checkpoint` and :func:`load_checkpoint` let training go on with another number of ranks.
"""

from torchopt_dist._checkpoint import load_checkpoint, save_checkpoint
from torchopt_dist._errors import LostRankError, TaskError, TaskFailure
from torchopt_dist._group import process_group
from torchopt_dist._tasks import TaskGradients, map_tasks

__all__ = [
    "LostRankError",
    "TaskError",
    "TaskFailure",
    "TaskGradients",
    "load_checkpoint",
    "map_tasks",
    "process_group",
    "save_checkpoint",
]
