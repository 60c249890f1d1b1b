"""expunge repairs neural networks that were trained on noisy data.

The stages `score`, `partition`, `rank`, `plan`, `prune`, `tune` and `compare` do one step each;
`repair` does them all, keeps what they made in a run folder, and decides by evidence.

Names are imported at their first use, so that ``import expunge`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expunge.config import (
        EditConfig,
        PartitionConfig,
        PruneConfig,
        RankConfig,
        RepairOptions,
        RoundsConfig,
        ScoreConfig,
    )
    from expunge.data import (
        DataConfig,
        DataLike,
        Samples,
        from_arrays,
        from_dataset,
        from_texts,
        hold_out,
    )
    from expunge.errors import (
        ConfigError,
        DataError,
        ExpungeError,
        ModelError,
        PartitionError,
        PruneError,
        RunError,
    )
    from expunge.export import (
        ExportedModel,
        export_model,
        load_exported_model,
        save_pretrained,
    )
    from expunge.model_free import detect
    from expunge.pipeline import forget, repair
    from expunge.recipes import Recipe
    from expunge.records import (
        Baseline,
        Budget,
        Decision,
        DetectionResult,
        Evaluation,
        Flag,
        HeadPlan,
        Metric,
        NeuronRanking,
        Partition,
        PrunePlan,
        RepairResult,
        Scores,
        Signals,
        UnlearningAudit,
    )
    from expunge.reporting.markdown import render_markdown as report
    from expunge.review import Answer, Review, reviewed
    from expunge.saved_run import load_run
    from expunge.stages import (
        Comparison,
        audit,
        average_checkpoint_probs,
        compare,
        edit,
        partition,
        plan,
        prune,
        rank,
        score,
        tune,
    )
    from expunge.training.optimisation import TuneConfig

# Where every public name is defined; "module:name" where it has another name there.
_PUBLIC = {
    "Answer": "expunge.review",
    "Baseline": "expunge.records",
    "Budget": "expunge.records",
    "Comparison": "expunge.stages",
    "ConfigError": "expunge.errors",
    "DataConfig": "expunge.data",
    "DataError": "expunge.errors",
    "DataLike": "expunge.data",
    "Decision": "expunge.records",
    "DetectionResult": "expunge.records",
    "EditConfig": "expunge.config",
    "Evaluation": "expunge.records",
    "ExportedModel": "expunge.export",
    "ExpungeError": "expunge.errors",
    "Flag": "expunge.records",
    "HeadPlan": "expunge.records",
    "Metric": "expunge.records",
    "ModelError": "expunge.errors",
    "NeuronRanking": "expunge.records",
    "Partition": "expunge.records",
    "PartitionConfig": "expunge.config",
    "PartitionError": "expunge.errors",
    "PruneConfig": "expunge.config",
    "PruneError": "expunge.errors",
    "PrunePlan": "expunge.records",
    "RankConfig": "expunge.config",
    "Recipe": "expunge.recipes",
    "RepairOptions": "expunge.config",
    "RepairResult": "expunge.records",
    "Review": "expunge.review",
    "RoundsConfig": "expunge.config",
    "RunError": "expunge.errors",
    "Samples": "expunge.data",
    "ScoreConfig": "expunge.config",
    "Scores": "expunge.records",
    "Signals": "expunge.records",
    "TuneConfig": "expunge.training.optimisation",
    "UnlearningAudit": "expunge.records",
    "audit": "expunge.stages",
    "average_checkpoint_probs": "expunge.stages",
    "compare": "expunge.stages",
    "detect": "expunge.model_free",
    "edit": "expunge.stages",
    "export_model": "expunge.export",
    "forget": "expunge.pipeline",
    "from_arrays": "expunge.data",
    "from_dataset": "expunge.data",
    "from_texts": "expunge.data",
    "hold_out": "expunge.data",
    "load_exported_model": "expunge.export",
    "load_run": "expunge.saved_run",
    "partition": "expunge.stages",
    "plan": "expunge.stages",
    "prune": "expunge.stages",
    "rank": "expunge.stages",
    "repair": "expunge.pipeline",
    "report": "expunge.reporting.markdown:render_markdown",
    "reviewed": "expunge.review",
    "save_pretrained": "expunge.export",
    "score": "expunge.stages",
    "tune": "expunge.stages",
}

__all__ = [
    "Answer",
    "Baseline",
    "Budget",
    "Comparison",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DataLike",
    "Decision",
    "DetectionResult",
    "EditConfig",
    "Evaluation",
    "ExportedModel",
    "ExpungeError",
    "Flag",
    "HeadPlan",
    "Metric",
    "ModelError",
    "NeuronRanking",
    "Partition",
    "PartitionConfig",
    "PartitionError",
    "PruneConfig",
    "PruneError",
    "PrunePlan",
    "RankConfig",
    "Recipe",
    "RepairOptions",
    "RepairResult",
    "Review",
    "RoundsConfig",
    "RunError",
    "Samples",
    "ScoreConfig",
    "Scores",
    "Signals",
    "TuneConfig",
    "UnlearningAudit",
    "__version__",
    "audit",
    "average_checkpoint_probs",
    "compare",
    "detect",
    "edit",
    "export_model",
    "forget",
    "from_arrays",
    "from_dataset",
    "from_texts",
    "hold_out",
    "load_exported_model",
    "load_run",
    "partition",
    "plan",
    "prune",
    "rank",
    "repair",
    "report",
    "reviewed",
    "save_pretrained",
    "score",
    "tune",
]

try:
    __version__ = version("expunge")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0.1.0"

# Former names, for a message that helps.
_RENAMED = {
    "certify": "audit",
    "load_exported": "load_exported_model",
    "save_exported": "export_model",
    "trajectory": "average_checkpoint_probs",
}


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        module, _, other = _PUBLIC[name].partition(":")
        found: object = getattr(import_module(module), other or name)
        globals()[name] = found
        return found
    hint = f"; it is now called '{_RENAMED[name]}'" if name in _RENAMED else ""
    raise AttributeError(f"module 'expunge' has no attribute '{name}'{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
