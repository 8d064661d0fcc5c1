"""From a transformers folder to what a device drafts with: GGUF for llama.cpp, ONNX for ONNX Runtime.

Needs torch and the packages of the extra `export`; nothing that drafts imports it.
"""
