"""A run's folder, what it starts from or goes on from, and all that is asked before it starts.

Knows not how a policy learns.
"""
