"""Save, restore, cut and copy the state of modules and meta-optimizers; convert states."""

from torchopt._module_clone import module_clone, module_detach_, stop_gradient
from torchopt._module_state import ModuleState, extract_state_dict, recover_state_dict
from torchopt._state_conversion import (
    convert_state,
    from_torch_state_dict,
    to_torch_state_dict,
)

__all__ = [
    "ModuleState",
    "convert_state",
    "extract_state_dict",
    "from_torch_state_dict",
    "module_clone",
    "module_detach_",
    "recover_state_dict",
    "stop_gradient",
    "to_torch_state_dict",
]
