"""The run's folder, starting and resuming, and every check before a start.

It does not know how a policy learns.
"""
