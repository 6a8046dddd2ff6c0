"""Frozen values that all layers speak of; no input or output happens here."""
