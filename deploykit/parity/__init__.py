"""Parity: measuring differences and judging them, apart from each other."""
