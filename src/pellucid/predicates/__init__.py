"""Who may look at whom: a mask is a predicate over the places of two tokens, a value, and closed under and, or, not.

Specs hold masks (``pellucid.spec`` names them all again); ``nn.masks`` lowers them to what a kernel can use. Sparse
attention is no other kind of mask: the layouts of its papers are expressions like any other.
"""

from pellucid.predicates.algebra import ORDINARY as ORDINARY
from pellucid.predicates.algebra import PREFIX as PREFIX
from pellucid.predicates.algebra import Ahead as Ahead
from pellucid.predicates.algebra import And as And
from pellucid.predicates.algebra import Bounds as Bounds
from pellucid.predicates.algebra import Causal as Causal
from pellucid.predicates.algebra import Full as Full
from pellucid.predicates.algebra import Mask as Mask
from pellucid.predicates.algebra import Not as Not
from pellucid.predicates.algebra import Or as Or
from pellucid.predicates.algebra import Place as Place
from pellucid.predicates.algebra import Prefix as Prefix
from pellucid.predicates.algebra import PrefixPart as PrefixPart
from pellucid.predicates.algebra import SameSegment as SameSegment
from pellucid.predicates.algebra import Span as Span
from pellucid.predicates.algebra import Window as Window
from pellucid.predicates.sparse import GlobalTokens as GlobalTokens
from pellucid.predicates.sparse import NearBlocks as NearBlocks
from pellucid.predicates.sparse import RandomBlocks as RandomBlocks
from pellucid.predicates.sparse import Strided as Strided
from pellucid.predicates.sparse import Summary as Summary
from pellucid.predicates.sparse import big_bird as big_bird
from pellucid.predicates.sparse import longformer as longformer
from pellucid.predicates.sparse import sparse_transformer as sparse_transformer
from pellucid.predicates.sparse import sparse_transformer_fixed as sparse_transformer_fixed
