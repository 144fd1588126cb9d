"""The HTTP service, its page, its metrics and its client."""
