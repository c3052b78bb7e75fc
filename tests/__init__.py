"""The tests. They ask no hub, whatever huggingface_hub would find in the environment when it is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
