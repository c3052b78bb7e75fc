"""The trained weights and how they compute: LoRA or full, precision, attention, gradient checkpointing, compilation.

It knows no rollout, no reward and no loss.
"""
