"""The letters that stand for sizes in every signature.

    B  sequences in a batch             H  key-value heads of the backbone
    L  layers that share their choices  E  size of one attention head
    S  text positions                   D  hidden size
    T  tokens of one pool or chunk      R  size of a retrieval key
    U  units of recall (chunks, or      V  vocabulary
       single tokens)                   P  prefix length of a read

A pool of memory tokens has one *track* where all layers remember the same tokens (chunk layout, L = all
layers), or one track per layer where each layer chooses for itself (token layout, L = 1).
"""

from jaxtyping import Float, Int
from torch import Tensor

RetrievalKeys = Float[Tensor, "T R"]
Ages = Int[Tensor, " T"]
Index = Int[Tensor, " T"]
