"""How a model is run, by whoever runs it: evaluation mode, compiled blocks, likelihoods, sessions over a cache."""
