"""A run's configuration: `keys` (every key), `rules` (what goes together), `load` (TOML), `options` (--help)."""

from fastmpl.config.keys import (
    CleanImages,
    DataConfig,
    FeedbackConfig,
    FeedbackKind,
    FinetuneConfig,
    MethodConfig,
    MethodName,
    NetworkConfig,
    Noise,
    Norm,
    Optimiser,
    RunConfig,
    Source,
    StudentConfig,
    SystemConfig,
    Targets,
    TeacherConfig,
    UdaConfig,
)
from fastmpl.config.load import difference, load, save, to_toml
from fastmpl.config.rules import feeds_back, is_capturable, names_own_model, names_run, trained_optimisers, uses_tf32
from fastmpl.config.schema import Config
from fastmpl.errors import ConfigError

__all__ = [
    "CleanImages",
    "Config",
    "ConfigError",
    "DataConfig",
    "FeedbackConfig",
    "FeedbackKind",
    "FinetuneConfig",
    "MethodConfig",
    "MethodName",
    "NetworkConfig",
    "Noise",
    "Norm",
    "Optimiser",
    "RunConfig",
    "Source",
    "StudentConfig",
    "SystemConfig",
    "Targets",
    "TeacherConfig",
    "UdaConfig",
    "difference",
    "feeds_back",
    "is_capturable",
    "load",
    "names_own_model",
    "names_run",
    "save",
    "to_toml",
    "trained_optimisers",
    "uses_tf32",
]
