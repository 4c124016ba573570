"""Triton: configuration, repository, embedded server, client."""
