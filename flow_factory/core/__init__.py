"""Mathematics and the stand-in for the scheduler: kernels, keyed noise, noise levels, advantages, a stock pipeline as sampler and velocity.

It knows no config file, no data set and no other process.
"""
