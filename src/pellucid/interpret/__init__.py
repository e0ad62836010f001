"""What happens inside a model, as measures on tensors: activations captured, and the residual stream read out early."""
