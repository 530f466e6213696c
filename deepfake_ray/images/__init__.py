"""One image: bytes -> pixels -> the model's input, and what can be told of it. Neither Ray nor torch.

From `fetch` (a URI's bytes) by `decode` (RGB pixels or an error code) to `preprocessing` (the model's input), which
`loading` does in one go; `augmentation` and `corruptions` change pixels on purpose.
"""
