"""RAP: which few per cent of multimodal data teach a model to reason, and why."""
