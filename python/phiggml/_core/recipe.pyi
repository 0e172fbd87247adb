from collections.abc import Sequence

class ModelShape:
    def __init__(
        self,
        *,
        architecture: str,
        n_layer: int,
        n_head: int,
        n_head_kv: int,
        n_expert: int,
        n_embd: int,
        n_ff: int,
    ) -> None: ...

class RecipeRules:
    def __init__(
        self,
        *,
        type: str,
        pure: bool,
        quantize_output: bool,
        output_type: str,
        has_imatrix: bool,
        in_order: bool,
    ) -> None: ...

class RecipeTensor:
    def __init__(
        self, *, name: str, shape: Sequence[int], type: str, override_type: str
    ) -> None: ...

class PlannedTensor:
    @property
    def index(self) -> int: ...
    @property
    def allowed(self) -> bool: ...
    @property
    def type(self) -> str: ...
    @property
    def requires_imatrix(self) -> bool: ...
    @property
    def requantized(self) -> bool: ...
    @property
    def source_row_bytes(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def fault(self) -> str: ...

def model_types() -> list[tuple[str, int]]: ...
def quantization_version() -> int: ...
def plan_types(
    model: ModelShape, rules: RecipeRules, tensors: Sequence[RecipeTensor]
) -> list[PlannedTensor]: ...
