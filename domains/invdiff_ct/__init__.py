"""Computed tomography for invdiff: parallel and fan beam, few views, limited angle, low dose."""
