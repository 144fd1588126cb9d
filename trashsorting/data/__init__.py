"""Photographs: where they come from, which are held out, which are copies, and synthetic ones."""
