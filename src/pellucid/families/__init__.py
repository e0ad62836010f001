"""Other people's models in our words: each family is data, a translation of its config and a table of weight names."""
