"""Trained networks on real images: what the methods find there, kept small and tested slowly."""
