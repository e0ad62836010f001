"""Recipes: Python functions that say what to train on and how; each is named for what it makes."""
