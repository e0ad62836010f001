"""Writing with a model: a policy (``sample``, ``beam``, ``speculate``) chooses tokens, ``write`` is the loop.

``stop`` makes text of tokens and cuts it; ``decode`` and ``chat`` are what callers use.
"""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.generate.decode", "generate")
