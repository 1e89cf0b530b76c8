"""The script that MLflow logs and runs: a generation as a model (models from code, no pickle)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE
from mlflow.pyfunc import PythonModel

from data_index.storage import Store
from sisa import learners
from sisa.ensemble import Ensemble
from sisa.errors import DataError, ExactnessError, IncompleteError
from sisa.served import Served


class ServedModel(PythonModel):  # type: ignore[misc]
    """Predicts what `sisa predict` predicts, by the same functions."""

    def load_context(self, context: Any) -> None:
        """Check every file by its digests, and build all constituents.

        Raises:
            ExactnessError: A checkpoint or the learner's code is not the one that was published.
        """
        folder = Path(context.artifacts["ensemble"])
        served = Served.from_json(json.loads((folder / "ensemble.json").read_bytes()))
        self.ensemble: Ensemble | None = None
        self.refusal = ""
        try:
            served.require_quorum()
        except (
            IncompleteError
        ) as error:  # a model that loads and refuses; an older one would answer
            self.refusal = f"Generation {served.number} does not predict: {error.message}"
            return
        code = learners.code_digest(served.recipe.learner.factory)
        if served.recipe.training_digest(code) != served.training:
            raise ExactnessError(
                f"Generation {served.number} was trained with other code of its learner.",
                "Load it with the versions that its requirements name.",
            )
        self.ensemble = Ensemble.of(served, Store(folder))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Prediction, and for a classification all probabilities.

        Args:
            context: Unused.
            model_input: Has the feature columns.
            params: Unused.

        Raises:
            MlflowException: Too few constituents vote, or a column does not fit.
        """
        if self.ensemble is None:
            raise MlflowException(self.refusal, TEMPORARILY_UNAVAILABLE)
        try:
            rows = pa.Table.from_pandas(model_input, preserve_index=False)
            return self.ensemble.predict_table(rows).to_pandas()
        except DataError as error:
            raise MlflowException(str(error), BAD_REQUEST) from None
        except pa.ArrowException:  # its text quotes a value
            raise MlflowException("A column holds values of mixed types.", BAD_REQUEST) from None


set_model(ServedModel())
