"""The theory, one idea a file, in the lecture's order. Every axis name in a shape, in one place:

=========== ==========================================================================================
batch       rows that are computed together; a row may be several packed documents
time        tokens of a row; ``query`` and ``key`` are time as seen from the two sides of attention
places      time, or of an image its patches and one before them; ``channels height width``: its pixels
d_model     width of the residual stream
d_embed     width of token vectors, that of the stream unless they are factorised
heads       query heads; ``kv_heads``: key/value heads, each shared by heads / kv_heads query heads
head_dim    width of one head's q, k and v
d_ff        width of the feed-forward layer's inner activation
experts     feed-forward layers to choose from; ``top_k`` of them for a token; ``pairs``: (token, choice), flat
vocab       entries of the vocabulary
slots       places of a cache, each with the position of the token it holds (-1: empty)
=========== ==========================================================================================

Masks and positions: ``masks`` (over ``layout``) ``biases`` ``positions`` ``rope``. Layers: ``norms`` ``attention``
(over ``kernels``) ``feed_forward`` ``moe`` (over ``grouped``) ``residual``. In attention's place: ``linear_attention``
(over ``running_sum``) ``recurrent`` (over ``stairs``) ``alignment``, with ``documents`` for what a state must know.
What all of them answer: ``mixer``; which module computes which spec: ``registry``. Models: ``embed`` ``block``
``stack`` ``heads`` ``models``, with ``loss`` ``init`` ``flops`` and ``cache`` (over ``stores`` and ``slots``). Tensors
that stay quantised: ``stored`` ``formats`` ``quantised`` ``products``.
"""
