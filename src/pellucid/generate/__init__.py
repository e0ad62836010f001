"""Writing with a model: ``sample`` chooses tokens, ``stop`` makes text of them and cuts it, ``decode`` is the loop."""
