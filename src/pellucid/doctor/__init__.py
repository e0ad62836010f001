"""Would this training learn what is meant? ``pellucid.doctor(data, model)`` looks, and says what with its numbers.

``subject`` what a check may look at, as plain values · ``ours`` ``hugging_face`` two makers of it · ``checks`` the
questions, a few a file · ``examine`` ``report`` all of them, and what was found
"""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.api", "doctor")
