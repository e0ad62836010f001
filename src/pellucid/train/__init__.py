"""Training: objectives know the task, the step knows neither task nor device, the loop knows when.

``objectives`` ``fits`` what is minimised, and for which model · ``step`` one update · ``optim`` ``schedule``
``precision`` how · ``world`` who trains together · ``options`` ``config`` ``derive`` ``resolve`` how an option is
declared, what a run is, where its numbers come from · ``prepare`` ``feeds`` from texts to a feed · ``start``
``trainer`` the model before the first step, and every step · ``run`` ``loop`` ``checkpoint`` ``metrics`` ``validate``
``report`` a run's life
"""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.train.run", "train")
