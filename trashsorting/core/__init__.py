"""What every other package speaks of: errors, the model card, settings, images, the log."""
