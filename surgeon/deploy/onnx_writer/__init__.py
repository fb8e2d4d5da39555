"""From an ONNX file and what is kept of its weights to a smaller ONNX file: no model is traced or exported."""

from surgeon.deploy.onnx_writer.state import Unwritable
from surgeon.deploy.onnx_writer.write import write

__all__ = ["Unwritable", "write"]
