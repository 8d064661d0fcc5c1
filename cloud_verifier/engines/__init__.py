"""Engines that evaluate the target model. `base` is the contract; `torch_engine` is the embedded default."""
