"""Repaired models for use: a folder with weights and a manifest that rebuilds them, and ONNX."""

from expunge.export.exported_model import (
    ExportedModel,
    export_model,
    export_run,
    load_exported_model,
)
from expunge.export.pretrained import export_pretrained_run, save_pretrained

__all__ = [
    "ExportedModel",
    "export_model",
    "export_pretrained_run",
    "export_run",
    "load_exported_model",
    "save_pretrained",
]
