"""Saved models: a folder of config.json and weights.safetensors, written whole and read with distrust."""

from cellnorm.checkpoint._folder import check_folder, fingerprint, fingerprints, load, save

__all__ = ["check_folder", "fingerprint", "fingerprints", "load", "save"]
