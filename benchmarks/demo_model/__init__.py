"""The demo's model: how it is trained and what it can see."""
