"""Planted faults: what goes wrong in real models, done to a clean one, each for the check that must find it.

``Fault.plant`` changes the model that it is given (or returns another subject); what it patches elsewhere is undone
after the test. Faults of one subject stand in a file of their own and are collected here.
"""

from __future__ import annotations

from faults_base import Fault
from faults_files import FAULTS as OF_FILES
from faults_forward import FAULTS as OF_THE_FORWARD
from faults_generation import FAULTS as OF_GENERATION
from faults_plain import FAULTS as OF_PLAIN_WEIGHTS
from faults_text import FAULTS as OF_TEXT

FAULTS: list[Fault] = [*OF_THE_FORWARD, *OF_GENERATION, *OF_FILES, *OF_TEXT, *OF_PLAIN_WEIGHTS]
