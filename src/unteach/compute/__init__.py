"""What a forward pass computes with: the output head and its statistics, attention's kernels, forwards in the place of others."""
