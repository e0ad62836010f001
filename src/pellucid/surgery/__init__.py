"""A model, changed after it was made: the same object of the same class, and every change can be undone."""
