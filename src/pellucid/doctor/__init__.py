"""Would this training learn what is meant? ``pellucid.doctor(data, model)`` looks, and says what with its numbers.

``subject`` what a check may look at, as plain values · ``ours`` and ``hugging_face`` (``hugging_face_trial``) its
two makers · ``checks`` the questions, a few a file · ``examine`` and ``report`` all of them, and what was found
"""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.api", "doctor")
