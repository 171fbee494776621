"""One Hugging Face model: loaded, identified, run.

``loading``: from a folder; ``identity``: hashes for the fingerprint; ``driver``: forwards
that return hidden states, q and k; ``capture``: how they are taken from the model;
``prompt``, ``batching``, ``head``, ``probe``: the driver's parts (processor, padding, head,
check); ``counterfactual``: the input without the image; ``rollouts``: sampled completions.
Importing this package imports no torch; the others do.
"""
