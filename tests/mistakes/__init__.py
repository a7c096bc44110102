"""Typical mistakes, and exactly what lorabake answers: see README.md."""
