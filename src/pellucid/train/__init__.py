"""Training: objectives know the task, the step knows neither task nor device, the loop knows when.

``objectives`` what is minimised · ``step`` one update · ``optim`` ``schedule`` ``precision`` how · ``config`` ``resolve``
what a run is and where each of its numbers comes from · ``loop`` ``checkpoint`` ``metrics`` ``display`` the life of a run
"""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.train.run", "train")
