"""How what happens inside a model is shown to a person: in the terminal and as one page."""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.look.look", "look")
