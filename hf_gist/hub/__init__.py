"""The Hugging Face Hub: model cards, dataset cards, uploads."""
