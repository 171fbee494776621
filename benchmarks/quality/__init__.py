"""Parts of benchmarks/selection_quality.py: measure once, then only count."""
