"""pellucid: the Transformer, whole. One model object that is trained, generates, and is looked into."""
