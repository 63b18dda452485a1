"""One training step done twice: ours, and the naive one that it is measured against; and the shapes
of batch that both are given.
"""
