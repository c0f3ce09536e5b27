"""Who computes: this process alone, worker processes beside it, and the other ranks of torchrun or srun.

A function and its tasks go in, their results come out; what they are depends neither on who computes nor on how many.
"""
