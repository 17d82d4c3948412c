"""Loads models from folders, files and hub ids: SAMs, multimodal LLMs, and the pipelines that join them.

torch is loaded when a model is, so that every --help is instant.
"""
