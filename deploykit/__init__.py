"""deploykit: from a pretrained transformer and labelled messages to a proven model on Triton."""

__version__ = "0.1.0"
