"""From a photograph to a prediction, by ONNX Runtime alone."""
