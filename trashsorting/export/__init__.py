"""From a trained network to the ONNX file that ships, with its card."""
