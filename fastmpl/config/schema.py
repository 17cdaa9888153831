"""The whole configuration, checked when it is made; it is never changed afterwards."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fastmpl.config.rules import refuse
from fastmpl.config.sections import (
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


class Config(BaseModel):
    """A run. Raises ConfigError for keys that do not go together, pydantic's ValidationError for a single bad value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: RunConfig = Field(RunConfig(), description="The run.")
    data: DataConfig = Field(DataConfig(), description="The images.")
    teacher: TeacherConfig = Field(TeacherConfig(), description="The teacher.")
    student: StudentConfig = Field(StudentConfig(), description="The student.")
    method: MethodConfig = Field(MethodConfig(), description="The method.")
    feedback: FeedbackConfig = Field(FeedbackConfig(), description="The feedback.")
    uda: UdaConfig = Field(UdaConfig(), description="The consistency loss.")
    finetune: FinetuneConfig = Field(FinetuneConfig(), description="The fine-tuning.")
    system: SystemConfig = Field(SystemConfig(), description="The execution.")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        refuse(self)
        return self
