"""A GGUF file as a target, evaluated by llama.cpp through llama-cpp-python's low-level functions.

One step: `engine` hands the new tokens of all sequences to llama.cpp in one `batch`, or in several where `row_rules`
say so; `cells` says where llama.cpp puts their keys and values, and shares those of equal beginnings; the choice is
made by the sampler of all engines. `model` opens a file, `load` makes an engine of it that was tried, `self_test` finds
out whether words depend on company, `fingerprint` names what decides them. `codec` is the file's own tokenizer.
"""
