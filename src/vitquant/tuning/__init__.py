"""Which setting each point gets, so that the model is best within a budget."""
