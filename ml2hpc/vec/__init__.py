"""Floor 1: vector spaces on torch tensors, flat parameter layouts, sums that do not depend on the number of ranks."""

from ml2hpc.vec.layout import Layout
from ml2hpc.vec.rows import Rows
from ml2hpc.vec.scatter import Scatter
from ml2hpc.vec.space import CPU, Partitioned, Replicated, Sharded, VectorSpace
from ml2hpc.vec.symmetric import SymmetricMatrix
from ml2hpc.vec.treesum import TreeSum

__all__ = [
    "CPU",
    "Layout",
    "Partitioned",
    "Replicated",
    "Rows",
    "Scatter",
    "Sharded",
    "SymmetricMatrix",
    "TreeSum",
    "VectorSpace",
]
