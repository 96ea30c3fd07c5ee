"""How is a model trained? One loop, the same under plain Python, torchrun, Ray Tune and Ray Train."""
