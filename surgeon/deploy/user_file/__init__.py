"""The ONNX file that a model was loaded from, less what was removed: nothing in it is exported anew."""
