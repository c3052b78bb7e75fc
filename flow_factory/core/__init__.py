"""The mathematics and the seam: transition kernels, keyed noise, noise levels, advantages, a stock pipeline as sampler and velocity field.

Knows no config file, no data set and no other process.
"""
