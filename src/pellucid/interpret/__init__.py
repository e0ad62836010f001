"""What happens inside a model, as measures on tensors: activations recorded, edits, the logit lens, habits of heads."""
