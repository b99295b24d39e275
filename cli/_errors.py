"""Which failures are the user's to mend, and the exit code of each. All else is a bug and keeps its traceback."""

from __future__ import annotations

import errno
import importlib
import sys

DONE, FAILED, USAGE, DOES_NOT_FIT, INTERRUPTED = 0, 1, 2, 3, 130

# Class -> exit code. By name, so that `--help` need not import the rooms; only a module that is loaded can have raised.
_KNOWN: dict[str, int] = {
    "edgellm.memory.units.BadSize": USAGE,
    "edgellm.memory.gguf.GgufError": FAILED,
    "edgellm.memory.adapter.AdapterError": FAILED,
    "edgellm.runtime.comparison.BadPrompts": USAGE,
    "edgellm.memory.shape.UnknownShape": FAILED,
    "edgellm.memory.kv.UnsupportedCache": USAGE,
    "edgellm.memory.device.UnknownDevice": USAGE,
    "edgellm.memory.plan.PlanError": FAILED,
    "edgellm.memory.plan.DoesNotFit": DOES_NOT_FIT,
    "edgellm.export.read.checkpoint.CheckpointError": FAILED,
    "edgellm.export.convert.engine_jobs.EngineJobError": FAILED,
    "edgellm.export.read.facts.UnsupportedModel": FAILED,
    "edgellm.export.read.tokenizer.TokenizerError": FAILED,
    "edgellm.memory.onnx_graph.OnnxError": FAILED,
    "edgellm.export.obtain.download.SourceError": FAILED,
    "edgellm.export.environments.ExporterError": FAILED,
    "edgellm.export.convert.imatrix.BadImatrix": FAILED,
    "edgellm.export.manifest.ManifestError": FAILED,
    "edgellm.export.staging.ExportError": FAILED,
    "edgellm.export.convert.trim.TrimError": FAILED,
    "edgellm.export.check.fidelity.VerificationFailed": FAILED,
    "edgellm.export.obtain.catalogue.UnknownModel": USAGE,
    "edgellm.export.obtain.catalogue.CatalogueError": FAILED,
    "edgellm.export.obtain.naming.BadReference": USAGE,
    "edgellm.export.obtain.store.PullError": FAILED,
    "edgellm.app.conversations.BadConversation": FAILED,
    "edgellm.app.defaults.BadSetting": USAGE,
    "edgellm.runtime.learning.persistence.BadArchive": FAILED,
    "edgellm.runtime.request.BadRequest": USAGE,
    "edgellm.runtime.sampling.BadSampling": USAGE,
    "edgellm.runtime.text.steps.TemplateError": FAILED,
    "edgellm.runtime.backends.base.LoadError": FAILED,
    "edgellm.runtime.backends.base.EngineError": FAILED,
}


def exit_code(error: BaseException) -> int | None:
    """The documented code of a known failure, None for a bug."""
    for name, code in _KNOWN.items():
        module, _, attribute = name.rpartition(".")
        if module in sys.modules and isinstance(error, getattr(importlib.import_module(module), attribute)):
            return code
    return FAILED if isinstance(error, OSError) else None


def sentence(error: BaseException) -> str:
    """The failure in one line."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        remedy = " (free some space and run the same command again)" if error.errno == errno.ENOSPC else ""
        return f"{place}{error.strerror}{remedy}"
    return " ".join(str(error).split())
