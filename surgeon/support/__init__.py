"""Files, documents, safetensors, progress."""
