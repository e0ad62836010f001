"""From text to ids and back: vocabularies of every format, what a stranger's may hold, token bytes, chat templates.

Import from the file that owns a name, e.g. ``from pellucid.text.tokenizer import Tokenizer``.
"""
