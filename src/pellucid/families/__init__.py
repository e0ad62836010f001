"""Other people's checkpoints: each family is data, a translation of its config and a table of its weight names."""
