"""Solvers of differential equations that autograd goes through, and that give what they know of each step.

A solver takes functions of (time, state), and returns a `Solution`: the accepted steps with their estimates of error
and stiffness as tensors in the graph. Step sizes are constants of the graph. They import torch only; the SDE's noise is
torchsde's.
"""
