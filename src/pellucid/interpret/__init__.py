"""Looking into a model: what it attends to, what it would guess at every layer, where it is surprised."""
