"""Other systems' speculative decoding beside ours: same model, prompts, machine and link."""
