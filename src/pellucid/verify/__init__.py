"""Does this model keep its promises? ``pellucid.verify(subject)`` tries each on every path and measures the error.

``subject`` what a check may ask of a model, whoever made it · ``ours`` ``hugging_face`` ``function`` three makers ·
``open`` from a name, folder or object to a subject · ``checks`` one promise a file · ``trial`` what the model reads ·
``measure`` how far is too far · ``run`` ``report`` all of it, and what was found
"""

from pellucid.rooms import make_callable

make_callable(__name__, "pellucid.verify.run", "verify")
