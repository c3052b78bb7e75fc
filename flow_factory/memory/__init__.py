"""Estimates of GPU and main memory from file headers and shapes, and suggestions that make a run fit.

It loads no weights.
"""
