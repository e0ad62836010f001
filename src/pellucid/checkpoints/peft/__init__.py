"""Adapters in the files of PEFT: ``adapter_config.json`` and ``adapter_model.safetensors``."""
