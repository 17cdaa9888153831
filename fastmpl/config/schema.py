"""The whole configuration, checked when it is made; it is never changed afterwards."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from fastmpl.config.keys import (
    DataConfig,
    FeedbackConfig,
    FinetuneConfig,
    MethodConfig,
    RunConfig,
    StudentConfig,
    SystemConfig,
    TeacherConfig,
    UdaConfig,
)
from fastmpl.config.rules import refuse


class Config(BaseModel):
    """A run. Raises ConfigError for keys that do not go together, pydantic's ValidationError for a single bad value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    method: MethodConfig = MethodConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    uda: UdaConfig = UdaConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    system: SystemConfig = SystemConfig()

    @model_validator(mode="after")
    def _refuse_impossible(self) -> Self:
        refuse(self)
        return self
