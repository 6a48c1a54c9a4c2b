"""See the gradient flow, see the optimizer move: graphs and trajectories as pictures.

:func:`gradient_graph` describes the graph that a backward pass goes through. :func:`record` watches
the computation first, so that modules, source lines and the places where gradients stop are known.
:func:`make_dot` draws the graph.
"""

from torchopt_viz._collect import gradient_graph
from torchopt_viz._dot import make_dot, resize_graph
from torchopt_viz._graph import Graph, Group, Memory, Node, Repeat, Saved
from torchopt_viz._record import record
from torchopt_viz._recording import Cut, Recording

__all__ = [
    "Cut",
    "Graph",
    "Group",
    "Memory",
    "Node",
    "Recording",
    "Repeat",
    "Saved",
    "gradient_graph",
    "make_dot",
    "record",
    "resize_graph",
]
