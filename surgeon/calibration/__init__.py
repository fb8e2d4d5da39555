"""What unlabeled inputs tell about a model: batches, moments, sensitivities, inputs made from the model alone."""
