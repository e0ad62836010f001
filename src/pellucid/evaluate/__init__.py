"""How good is a model, as a number: the likelihood of texts, and of continuations."""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.evaluate.texts", "evaluate")
