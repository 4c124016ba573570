"""Labelled messages: reading, checking, splitting."""
