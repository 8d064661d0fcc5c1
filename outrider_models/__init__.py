"""Model files as both sides use them: headers, text, the hub, llama.cpp. Nothing of drafters, engines or torch."""
