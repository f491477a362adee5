"""Pure functions on tensors that more than one method uses. Ground floor: imports torch only."""
