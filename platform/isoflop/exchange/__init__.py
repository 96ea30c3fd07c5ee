"""How do models get in and out? Folders in the form of the Hugging Face hub, read and written.

    folder      the files: config.json and safetensors, in one piece or in several
    shapes      their configuration and ours
    weights     their names and layouts, and ours
    checkpoint  our own folders, read without the study that made them

`load_model(folder)` reads GPT-2, LLaMA, Mixtral and T5 1.1; `save_model(model, folder)` writes the
first two, as transformers reads them. The one room of the platform that knows models by name: it is
a dictionary between two languages.
"""

from isoflop.exchange.folder import load_model, save_model

__all__ = ["load_model", "save_model"]
