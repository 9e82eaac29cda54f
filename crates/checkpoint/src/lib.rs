//! Model files: GGUF, safetensors, configuration, tokenizers, chat templates, and where to find them.
