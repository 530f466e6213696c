"""Many images: listed, in tables, with labels and splits, checked for leaks, and their predictions read back.

`manifest` alone knows the format of manifests, `predictions` that of predictions. Neither Ray nor torch.
"""
