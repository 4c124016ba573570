"""The whole path: planning it, and running what is planned."""
