"""Deformation fields: which are plausible, which explain a pair of images, and how sure we are of them."""
