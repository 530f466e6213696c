"""What image files are made of, walked from the front: which format, complete or cut, which way up, which colours.

A new format begins in `containers`, which asks the others.
"""
