"""Training jobs and deployments on Google Cloud, as data."""
