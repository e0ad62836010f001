"""What a model makes of texts, in numbers: the likelihood of texts and of continuations, and a vector of each."""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.evaluate.texts", "evaluate")
