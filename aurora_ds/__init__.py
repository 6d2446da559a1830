"""aurora_ds: Aurora prompts for frozen vision-language backbones, from WebDataset shards, under DeepSpeed."""

__version__ = "0.1.0"
