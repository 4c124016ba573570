"""Artefacts on disk: digests, manifests, the content-addressed store, locks."""
