"""Rows: reading them, turning them into tokens with labels, finding duplicates, naming their origin."""
