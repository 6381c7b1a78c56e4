"""Molecules: graph priors against formulas, fragments and properties."""
