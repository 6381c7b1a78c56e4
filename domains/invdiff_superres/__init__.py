"""Super-resolution of photographs, micrographs and MR slices."""
