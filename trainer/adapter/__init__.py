"""Adapters in a network: which layers get one, the layers themselves, their parameters."""
