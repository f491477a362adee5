"""What is measured beside a family's own metrics, on any method: Lightning callbacks."""
