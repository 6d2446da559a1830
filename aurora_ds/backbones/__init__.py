"""Frozen models and their checkpoints. They know nothing of prompts: what can be adapted is listed as sites."""
