"""One Hugging Face model: loaded, identified, driven.

``loading``: from a folder; ``identity``: hashes for the fingerprint; ``driver``: forwards
that return hidden states, q and k; ``capture``: how they are taken from the model;
``counterfactual``: the input without the image; ``rollouts``: sampled completions.
Importing this package imports no torch; ``driver`` and ``capture`` do.
"""
