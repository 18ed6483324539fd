"""Blob stores: one contract, kept by a folder and by any S3-compatible bucket."""
