"""Writing with a model: ``sample`` chooses tokens, ``stop`` makes text of them and cuts it, ``decode`` is the loop."""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.generate.decode", "generate")
