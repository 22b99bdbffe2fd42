"""Tasks, data, models and the training loop. `import edgeml.train` does not import torch."""
