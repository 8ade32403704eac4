"""What all sections of the YAML file share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    field_validator,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Precision = Literal["fp32", "bf16"]
Runtime = Literal["torch", "openvino"]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of all sections: frozen; unknown keys, NaN, infinity and booleans are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _refuse_booleans(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        validated = validate(value)
        # Text and sections refuse them by themselves; numbers would take `off` for 0.
        if any(isinstance(v, bool) for v in (value if isinstance(value, list) else [value])):
            raise ValueError(
                f"{str(value).lower()}, expected no boolean; YAML reads on, off, yes and no as "
                "booleans, so give a number, or quote a word"
            )
        return validated
