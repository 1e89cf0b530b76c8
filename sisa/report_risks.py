"""What exactness does not cover, in a sentence each; docs/threat-model.md is the long form."""

from __future__ import annotations

from sisa.mirror_reach import Mirror as Kind
from sisa.report_results import Risk

RISKS = (
    Risk(
        name="Pretrained base model",
        residual="What a base model learned before, perhaps from the same people, stays in it.",
    ),
    Risk(
        name="Choice of the recipe",
        residual="Classes, categories and settings were chosen by somebody who saw the data; a "
        "value that only one person had stays in the recipe.",
    ),
    Risk(
        name="Backups and source tables",
        residual="Copies outside of the store still hold the person until they are erased there "
        "or expire. An old copy of ledger or store that is restored is noticed by the signed log, "
        "and the person erased again; old copies of everything, the log included, are not.",
    ),
    Risk(
        name="Downstream copies",
        residual="Predictions, exports and models made from them descend from the person, and are "
        "not reached.",
    ),
    Risk(
        name="MLflow mirror",
        residual="What is there of retired generations is destroyed before it is certified; "
        "downloads, a server's backups and logs, and the rows that it keeps are not reached.",
    ),
    Risk(
        name="Adaptive requests",
        residual="Votes carry no noise, and nothing is claimed about requests that were chosen "
        "after looking at predictions.",
    ),
    Risk(
        name="Comparison of before and after",
        residual="Who kept predictions of two generations can infer who was erased between them.",
    ),
    Risk(
        name="Other hardware or libraries",
        residual="Bits can be compared only where the environment is the recorded one.",
    ),
    Risk(
        name="Search for residue",
        residual="It looks for ids, keys and bytes of rows; values that were computed from a row, "
        "encrypted or unknown formats, freed disk blocks and places that this system does not "
        "write to are not searched.",
    ),
    Risk(
        name="Near duplicates",
        residual="The same person under another id, or described in another person's record, is "
        "neither found nor erased.",
    ),
    Risk(
        name="User code",
        residual="A learner that reads files or keeps state outside of its checkpoint is noticed "
        "only if bits change between runs.",
    ),
)
"""In the order of the table there."""

MEANINGS: dict[Kind, str] = {
    "none": "There is no mirror: nothing is told to MLflow.",
    "local": "MLflow's rows and artefacts lie in local files. An erasure destroys what there is of "
    "retired generations, and looks again, before it is certified.",
    "database": "MLflow's rows lie in a database. An erasure destroys artefacts and rows of "
    "retired generations, and looks again, before it is certified; its own logs and backups "
    "keep rows until they expire.",
    "server": "MLflow is behind a server. An erasure destroys versions and artefacts of retired "
    "generations, and looks again, before it is certified; rows that no client can drop stay, "
    "with digests, counts and aggregate metrics, and certificates count them.",
}
"""What the kind of mirror means for an erasure."""
