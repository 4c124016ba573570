"""Latency: measuring apart from judging."""
