"""Restoration of images and of vectors with a learned denoiser or proximal operator."""
