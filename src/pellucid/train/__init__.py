"""Training: objectives know the task, the step knows neither task nor device, the loop knows when.

``objectives`` what is minimised · ``step`` one update · ``optim`` ``schedule`` ``precision`` ``compiling`` how ·
``config`` ``resolve`` what a run is and where its numbers come from · ``prepare`` text to tokens ·
``run`` ``loop`` ``checkpoint`` ``metrics`` ``validate`` ``report`` the life of a run
"""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.train.run", "train")
