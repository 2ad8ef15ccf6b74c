"""pinstorm: makes the kernel pin user pages, and records what the kernel did."""

__version__ = "0.1.0"
