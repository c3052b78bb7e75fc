"""What is trained and how it computes: LoRA or all weights, precision, attention, gradient checkpointing, compilation.

Knows no rollout, no reward and no loss.
"""
