"""Distributed detection of deepfake images on Ray: train, score, evaluate."""

__version__ = "0.1.0"
