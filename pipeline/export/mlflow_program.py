"""The code inside an exported MLflow model: it runs the torch.export program that lies beside it.

MLflow copies this file into the model and runs it wherever the model is loaded, so it needs torch, and nothing of this
project. It is not imported from here.
"""

from typing import Any

import mlflow.models
import numpy as np
import torch
from mlflow.pyfunc.model import PythonModel


class ProgramModel(PythonModel):
    """Arrays by input name -> arrays by output name."""

    def load_context(self, context: Any) -> None:
        """Load the program."""
        self.program = torch.export.load(context.artifacts["program"]).module()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints as signature
        """Arrays by input name -> arrays by output name."""
        config = context.model_config
        inputs = [torch.from_numpy(np.ascontiguousarray(model_input[name])) for name in config["inputs"]]
        with torch.inference_mode():
            outputs = self.program(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {name: output.numpy() for name, output in zip(config["outputs"], outputs, strict=True)}


mlflow.models.set_model(ProgramModel())
