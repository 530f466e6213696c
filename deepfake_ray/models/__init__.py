"""Networks and what becomes of them: the bundle, scores from logits, inference, 8-bit integers, Grad-CAM. No Ray.

`bundle` alone knows the format of bundles and is read without torch.
"""
