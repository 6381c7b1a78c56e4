"""Magnetic resonance for invdiff: Cartesian undersampling, one or many coils."""
