"""How is a model trained? One loop, the same under plain Python, torchrun and Ray."""
